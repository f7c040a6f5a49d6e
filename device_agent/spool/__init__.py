"""Outgoing messages: queued in order, kept over a restart if so set, and sent."""
