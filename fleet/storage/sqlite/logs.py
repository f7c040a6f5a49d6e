"""The audit, its heads and hashes, and the events, as SQL. Each runs in a reader's own thread."""

import sqlite3

from fleet.domain.audit_log import Sealed, TreeHead
from fleet.domain.changes import AuditRow, Event
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY, Frontier
from fleet.storage import mapping
from fleet.storage.sqlite.listings import bounded


def _select(table: str, names: tuple[str, ...], rest: str) -> str:
    return f"SELECT {mapping.columns(names)} FROM {table} {rest}"  # noqa: S608  our own constants


AUDIT = _select("audit", mapping.AUDIT_COLUMNS, "WHERE seq > ? ORDER BY seq LIMIT ?")
LAST_AUDIT = "SELECT coalesce(max(seq), 0) FROM audit"
LEAVES = "SELECT seq - 1, leaf FROM audit WHERE seq > ? ORDER BY seq LIMIT ?"
NODES = "SELECT idx, hash FROM audit_node WHERE level = ? AND idx >= ? ORDER BY idx LIMIT ?"
HEADS = _select("audit_head", mapping.HEAD_COLUMNS, "WHERE size > ? ORDER BY size LIMIT ?")
LAST_HEAD = _select("audit_head", mapping.HEAD_COLUMNS, "WHERE size = (SELECT max(size) FROM audit_head)")
FRONTIER = "SELECT size, hashes FROM audit_frontier WHERE one = 1"
EVENTS = _select("event", mapping.EVENT_COLUMNS, "WHERE seq > ? ORDER BY seq LIMIT ?")
FIRST_EVENT = "SELECT coalesce(min(seq), 0) FROM event"
LAST_EVENT = "SELECT coalesce(max(seq), 0) FROM event"


def audit(db: sqlite3.Connection, after: int, limit: int) -> list[AuditRow]:
    """Raises: Invalid (`audit-changed`): a row holds what no entry could have held."""
    strict = db.text_factory
    db.text_factory = _any_text  # a byte that was flipped in the file is to be found by its leaf, not by a decoder
    try:
        return [mapping.audit_of(row) for row in db.execute(AUDIT, (after, bounded(limit)))]
    finally:
        db.text_factory = strict


def _any_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def last_audit(db: sqlite3.Connection) -> int:
    return _number(db, LAST_AUDIT)


def audit_heads(db: sqlite3.Connection, after: int, limit: int) -> list[TreeHead]:
    return [mapping.head_of(row) for row in db.execute(HEADS, (after, bounded(limit)))]


def last_sealed(db: sqlite3.Connection) -> Sealed | None:
    """With an empty frontier when what is kept of it is none: whoever goes on from it compares it with the head.

    Raises: Invalid (`audit-head-removed`): there was a head, and there is none.
    """
    head = db.execute(LAST_HEAD).fetchone()
    kept = db.execute(FRONTIER).fetchone()
    if head is None:
        if kept is not None:
            message = f"The audit is broken: a head of {kept[0]} rows was there, and there is none any more."
            raise Invalid("audit-head-removed", message)
        return None
    try:
        frontier = Frontier.unpacked(*kept)
    except (TypeError, ValueError):
        frontier = EMPTY
    return Sealed(mapping.head_of(head), frontier)


def audit_hashes(db: sqlite3.Connection, level: int, first: int, count: int) -> list[bytes]:
    """Without gaps from `first` on: what stands behind a gap is not returned."""
    if level == 0:
        found = db.execute(LEAVES, (first, bounded(count)))
    else:
        found = db.execute(NODES, (level, first, bounded(count)))
    return [hash_ for expected, (index, hash_) in enumerate(found, first) if index == expected]


def events(db: sqlite3.Connection, after: int, limit: int) -> list[Event]:
    return [mapping.event_of(row) for row in db.execute(EVENTS, (after, bounded(limit)))]


def first_event(db: sqlite3.Connection) -> int:
    return _number(db, FIRST_EVENT)


def last_event(db: sqlite3.Connection) -> int:
    return _number(db, LAST_EVENT)


def _number(db: sqlite3.Connection, sql: str) -> int:
    number: int = db.execute(sql).fetchone()[0]
    return number
