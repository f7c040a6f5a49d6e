"""Bytes to frozen values and back, shared by all five programs. No I/O, no clock, no logging."""
