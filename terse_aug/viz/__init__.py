"""Drawing for people: boxes and masks, contact sheets, text."""
