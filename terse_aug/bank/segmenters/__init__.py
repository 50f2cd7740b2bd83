"""Masks for objects that have none: from a box, a plain background, or motion."""
