"""The audit as a hash chain: each row's hash covers its entry, its sequence and the hash before it.

Whoever changes, removes or moves a row without rewriting every later one is found by `verify`. A chain cannot show
that its newest rows were cut off, or that all of it was rewritten: for that, note a head (sequence and hash)
somewhere else now and then, and compare.
"""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.errors import Invalid

GENESIS = bytes(32)
"""Stands before the first row, whose sequence is 1."""

MOVED_SEARCH_MAX = 1_000  # rows either side in which a row that is out of place is looked for: it only words the error

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# One form for one entry: a list in fixed order, no spaces, everything beyond ASCII escaped.
_canonical = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode


def row_hash(entry: AuditEntry, seq: int, previous: bytes) -> bytes:
    """SHA-256 over `previous` (32 bytes) and the canonical JSON of `seq` and `entry`, its time in microseconds."""
    text = _canonical(
        [
            seq,
            (entry.at - _EPOCH) // _MICROSECOND,
            entry.actor,
            entry.action,
            entry.subject,
            entry.outcome,
            entry.address,
            entry.detail,
        ]
    )
    return hashlib.sha256(previous + text.encode("ascii")).digest()


def verify(rows: Iterable[AuditRow], previous: bytes = GENESIS, after: int = 0) -> bytes:
    """The hash of the last of `rows`, when they continue the chain unbroken.

    To go on in pages, pass the hash returned as `previous` and the last sequence as `after`.

    Raises: Invalid: `audit-changed`, `audit-removed` or `audit-moved`, naming the first bad row.
    """
    for row in rows:
        if row.seq > after + 1:
            missing = f"row {after + 1} is" if row.seq == after + 2 else f"rows {after + 1} to {row.seq - 1} are"
            raise Invalid("audit-removed", f"The audit is broken: {missing} missing.")
        if row.seq <= after:
            raise Invalid("audit-moved", f"The audit is broken: row {row.seq} stands after row {after}.")
        if row_hash(row.entry, row.seq, row.previous) != row.hash:
            raise _altered(row)
        if row.previous != previous:
            # Sound in itself, so it was hashed anew, or the row before it was.
            raise Invalid("audit-changed", f"The audit is broken: row {row.seq} does not follow the row before it.")
        previous, after = row.hash, row.seq
    return previous


def _altered(row: AuditRow) -> Invalid:
    nearby = range(max(1, row.seq - MOVED_SEARCH_MAX), row.seq + MOVED_SEARCH_MAX)
    for seq in nearby:
        if row_hash(row.entry, seq, row.previous) == row.hash:
            return Invalid("audit-moved", f"The audit is broken: row {row.seq} was written as row {seq} and moved.")
    return Invalid("audit-changed", f"The audit is broken: row {row.seq} has been changed.")
