"""What becomes of a packet: it goes on as it is, it is dropped, or other bytes go on in its place."""

import enum


class Fate(enum.Enum):
    FORWARDED = enum.auto()
    DROPPED = enum.auto()


Outcome = bytes | Fate
"""Bytes: these, in place of the packet."""
