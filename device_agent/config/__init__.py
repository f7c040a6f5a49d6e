"""agent.toml: its settings, read and written."""
