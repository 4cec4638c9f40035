"""What keeps a pool in order: write-back, memory, the working set, the steward and the budget."""
