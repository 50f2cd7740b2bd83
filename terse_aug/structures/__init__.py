"""Data structures: annotations and their validation, pixel format, keypoint order, foregrounds."""
