"""Auto-update: a neuron fast-forwards its own clone, and goes back by itself where the new commit does not come up."""
