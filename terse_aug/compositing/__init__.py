"""From a paste plan and transforms to composites with corrected labels. Pure functions."""
