"""Drawing: boxes and masks on images, contact sheets, text."""
