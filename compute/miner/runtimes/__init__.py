"""What a lease runs in: a Docker container, or a process of this machine."""
