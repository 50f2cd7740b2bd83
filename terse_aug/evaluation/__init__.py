"""Measures how hard and how diverse composites are."""
