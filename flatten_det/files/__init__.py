"""Files: read as data only, written whole or not at all, downloaded once."""
