"""Measured servers, the fleet's own among them: real processes, pinned to cores, with the same certificates."""
