"""The node as clients see it: WebSocket, JSON-RPC, runtime APIs, storage, subscriptions."""
