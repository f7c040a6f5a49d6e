"""Wills that wait at the broker, and their cancellation."""
