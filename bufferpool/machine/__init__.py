"""What the machine says: memory pressure, mounts, sizes by default, descriptors."""
