"""Enrollment over Secure Transport (RFC 7030 with RFC 8951): every operation but fullcmc."""
