"""What neurons say to each other: synapses' contents, signatures, receipts, and both ends of the transport."""
