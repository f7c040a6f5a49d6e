"""Lease: exclusive right of one node to a task, for a limited time.

The same Write, TakeLease, acquires, renews and checks it. In one Change with other writes it fences them: a node that
has lost the lease, suspended or partitioned, changes nothing.
"""

from datetime import datetime

from msgspec import Struct

RETENTION = "retention"
"""The lease of the node that archives."""


class Lease(Struct, frozen=True):
    """`owner` has the exclusive right to `name` until `expires_at`."""

    name: str
    owner: str
    expires_at: datetime
