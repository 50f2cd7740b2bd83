"""Masks for objects that have none: from a box, a plain background, motion, or a mask of unknown polarity."""
