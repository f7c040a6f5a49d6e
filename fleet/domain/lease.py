"""A lease: which node at a time does what only one may do, until it says so no more.

It is taken, renewed and held by the same Write, TakeLease. Put beside other writes in one Change it is also their
fence: whoever has lost the lease meanwhile, asleep or cut off, changes nothing any more.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """`owner` does `name`, and nobody else does before `expires_at`."""

    name: str
    owner: str
    expires_at: datetime
