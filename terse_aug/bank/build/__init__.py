"""Building a bank: the pipeline, its worker processes, resuming, and the report of what was rejected."""
