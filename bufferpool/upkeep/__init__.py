"""The upkeep of a pool: write-back, memory, the working set, the steward and the budget."""
