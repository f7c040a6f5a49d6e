"""Bytes to frozen values and back, shared by all four programs. No I/O, no clock, no logging."""
