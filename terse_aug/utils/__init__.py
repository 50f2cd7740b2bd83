"""Random generators, distributed sums, optimizer state, warnings."""
