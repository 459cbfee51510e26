"""Data sets on disk: download, unpack, convert, check; and configs for data of one's own."""
