"""The miner: says what its machine is, and leases it."""
