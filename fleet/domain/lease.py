"""Lease: exclusive right of one node to a task, for a limited time.

The same Write, TakeLease, acquires, renews and checks it. In one Change with other writes it fences them: a node that
has lost the lease, suspended or partitioned, changes nothing.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """`owner` has the exclusive right to `name` until `expires_at`."""

    name: str
    owner: str
    expires_at: datetime
