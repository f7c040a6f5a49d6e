"""The servers that are measured, ours among them: each a real process, pinned, with the same certificates."""
