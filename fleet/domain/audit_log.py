"""Audit log as a Merkle tree: each row is a leaf, and signed tree heads commit to all rows before them.

A leaf covers the row's sequence number and entry, so a changed or moved row no longer matches its leaf, and changed,
removed or inserted leaves no longer match the next signed head. Rows do not depend on one another: concurrent commits
need to agree on the numbering only.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from msgspec import Struct

from fleet.config.timestamps import EPOCH
from fleet.domain import merkle
from fleet.domain.changes import AuditEntry, AuditRow
from fleet.domain.errors import Invalid

NODE_LEVELS = (8, 16, 24, 32)
"""Levels of perfect subtrees whose hashes are stored once complete: a proof reads a few hundred hashes."""

_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)
# Canonical: a list in fixed order, no spaces, non-ASCII escaped.
_canonical = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode


def leaf_data(entry: AuditEntry, seq: int) -> bytes:
    """Leaf data of `entry` as row `seq`: canonical JSON, time in microseconds since 1970."""
    microseconds = (entry.at - EPOCH) // _MICROSECOND
    texts = (entry.actor, entry.action, entry.subject, entry.outcome, entry.address)
    return _canonical([seq, microseconds, *texts, entry.detail]).encode("ascii")


def leaf_of(entry: AuditEntry, seq: int) -> bytes:
    """The leaf hash of `entry` as row `seq`, 32 bytes. Row 1 is the leaf of index 0."""
    return merkle.leaf_hash(leaf_data(entry, seq))


class TreeHead(Struct, frozen=True):
    """A tree head over the first `size` rows as of `at`, signed, so that history cannot be rewritten unnoticed."""

    size: int
    root: bytes
    at: datetime
    """To the millisecond."""
    key_id: bytes
    """SHA-256 of the signing key's DER SubjectPublicKeyInfo, 32 bytes."""
    signature: bytes
    """ECDSA with SHA-256 over `head_data`, DER."""


def head_data(size: int, root: bytes, at: datetime) -> bytes:
    """The signed data (RFC 9162, 4.10): milliseconds since 1970, size, root hash, no extensions."""
    milliseconds = (at - EPOCH) // _MILLISECOND
    return milliseconds.to_bytes(8) + size.to_bytes(8) + bytes([len(root)]) + root + b"\0\0"


def key_id(spki_der: bytes) -> bytes:
    """Identifier of the signing key in a head."""
    return hashlib.sha256(spki_der).digest()


class AuditNode(Struct, frozen=True):
    """The hash of a complete perfect subtree; `level` is one of NODE_LEVELS."""

    level: int
    index: int
    hash: bytes


def grown(tree: merkle.Frontier, leaves: Iterable[bytes]) -> tuple[merkle.Frontier, tuple[AuditNode, ...]]:
    """`tree` with `leaves` appended, and the nodes of NODE_LEVELS completed by them."""
    nodes: list[AuditNode] = []

    def whole(level: int, index: int, hash_: bytes) -> None:
        if level in NODE_LEVELS:
            nodes.append(AuditNode(level, index, hash_))

    return tree.appended(leaves, whole), tuple(nodes)


class Sealed(Struct, frozen=True):
    """A head with the state needed to append to its tree."""

    head: TreeHead
    frontier: merkle.Frontier


MOVED_SEARCH_MAX = 1_000  # rows either side that are searched for a misplaced row, to word the error


def sound_leaves(rows: Iterable[AuditRow], after: int = 0) -> Iterator[bytes]:
    """The leaf hashes of `rows`, which follow row `after` without a gap and match their stored leaves.

    Leaves rewritten together with their rows are detected only by a signed head.

    Raises: Invalid: `audit-changed`, `audit-removed`, `audit-inserted` or `audit-moved`, naming the first bad row.
    """
    for row in rows:
        if row.seq > after + 1:
            missing = f"row {after + 1} is" if row.seq == after + 2 else f"rows {after + 1} to {row.seq - 1} are"
            raise Invalid("audit-removed", f"The audit is broken: {missing} missing.")
        if row.seq <= after:
            raise Invalid("audit-moved", f"The audit is broken: row {row.seq} is after row {after}.")
        if leaf_of(row.entry, row.seq) != row.leaf:
            raise _altered(row)
        yield row.leaf
        after = row.seq


def _altered(row: AuditRow) -> Invalid:
    nearby = range(max(1, row.seq - MOVED_SEARCH_MAX), row.seq + MOVED_SEARCH_MAX)
    for seq in nearby:
        if leaf_of(row.entry, seq) == row.leaf:
            if seq < row.seq:  # the row at `seq` was verified, so there is one too many
                where = f"before row {row.seq}, which was written as row {seq}"
                return Invalid("audit-inserted", f"The audit is broken: something was inserted {where}.")
            return Invalid("audit-moved", f"The audit is broken: row {row.seq} was written as row {seq} and moved.")
    return Invalid("audit-changed", f"The audit is broken: row {row.seq} has been changed.")
