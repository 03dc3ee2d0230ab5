"""What a machine earns: ``config.yaml``, scores, weights. Pure, but for the reading of the file."""
