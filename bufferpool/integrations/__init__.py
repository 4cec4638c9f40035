"""What connects the pool to other libraries: each module needs its library, and is imported by itself."""
