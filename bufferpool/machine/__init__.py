"""The machine: memory pressure, mounts, automatic sizes, file descriptors."""
