"""What the command-line tools share: running a config, stopping cleanly, clear errors."""
