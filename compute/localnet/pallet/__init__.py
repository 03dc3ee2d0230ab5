"""The rules of the chain: state, blocks, transactions, calls, consensus."""
