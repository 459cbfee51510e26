"""Images larger than a test pipeline's size: segmented as a whole, or detected in tiles."""
