"""The agent as a systemd service."""
