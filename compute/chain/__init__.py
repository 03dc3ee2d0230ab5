"""The chain: read, written and read back through the SDK, and whom of the metagraph a neuron talks to."""
