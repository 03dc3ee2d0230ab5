"""What clients are told that the chain can do, and how it is written: SCALE, metadata, extrinsics."""
