"""One file for each source of foregrounds."""
