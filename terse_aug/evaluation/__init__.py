"""How hard and how diverse composites are."""
