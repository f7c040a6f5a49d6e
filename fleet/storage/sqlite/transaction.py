"""A batch of Changes as one transaction and one fsync (group commit). Runs in the writer's own thread.

1  every Change's writes, then all audit rows and all events
2  only if one of them conflicts: rolled back and repeated, each Change in a savepoint
3  COMMIT
"""

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from fleet.domain.audit_log import leaf_of
from fleet.domain.changes import AuditRow, Committed
from fleet.domain.errors import Conflict
from fleet.domain.writes import AddCredential, Insert, StillUsable
from fleet.storage import mapping, queries
from fleet.storage.sqlite.connection import transaction
from fleet.storage.sqlite.writes import apply

ROWS_A_STATEMENT_MAX = 64  # 9 values each; SQLite takes 32,766

LAST_NUMBERS = f"SELECT ({queries.LAST_AUDIT.sqlite}), ({queries.LAST_EVENT.sqlite})"

_CONSTRAINT_ERRORS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)


class Written(NamedTuple):
    """What became of a batch."""

    outcomes: list[Exception | None]
    """One for each Change, None for one that was committed."""
    event_seq: int
    """The feed's last number before the batch; its events are numbered on from there."""


class _BatchConflict(Exception):
    """A Change of the batch conflicts; the others may still be written."""


class Batch:
    """Writes Changes one by one in the open transaction, each in a savepoint; numbers their audit rows and events."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._audit_seq, self.event_seq = _last_numbers(db)

    def add(self, change: Committed) -> Exception | None:
        """Write all of `change`; or nothing, and return the reason.

        Raises: sqlite3.OperationalError, sqlite3.DatabaseError: the database failed, and the batch with it.
        """
        self._db.execute("SAVEPOINT change")
        try:
            for write in change.writes:
                apply(self._db, write)
            _record(self._db, (change,), self._audit_seq, self.event_seq)
        except _CONSTRAINT_ERRORS as error:
            return self._undo(Conflict("against-the-rules", f"The registry's own rules forbid this: {error}."))
        except sqlite3.Error:
            raise
        except Exception as error:  # one caller's bad value must not fail the others in the batch
            return self._undo(error)
        self._db.execute("RELEASE change")
        self._audit_seq += change.audit is not None
        self.event_seq += len(change.events)
        return None

    def _undo(self, error: Exception) -> Exception:
        self._db.execute("ROLLBACK TO change")
        self._db.execute("RELEASE change")
        return error


def write_batch(db: sqlite3.Connection, changes: Sequence[Committed]) -> Written:
    """Commit `changes` in one transaction and one fsync.

    Nearly always none conflicts, and they are written together. Otherwise that is rolled back, and each is written in a
    savepoint.

    Raises: sqlite3.Error: nothing of any of them happened.
    """
    try:
        with transaction(db):
            return _write_together(db, changes)
    except _BatchConflict:
        with transaction(db):
            return _write_one_by_one(db, changes)


def _write_together(db: sqlite3.Connection, changes: Sequence[Committed]) -> Written:
    """Half the statements of `_write_one_by_one`: at each, this thread may have to wait for the interpreter.

    Raises: _BatchConflict: a Change conflicts. sqlite3.Error: the database failed.
    """
    usable: set[StillUsable] = set()  # looked at in this batch: a station enrolls many devices at once
    try:
        for change in changes:
            for write in change.writes:
                if isinstance(write, StillUsable):
                    if write in usable:
                        continue
                    usable.add(write)
                elif not isinstance(write, (Insert, AddCredential)):
                    usable.clear()  # it may have ended one
                apply(db, write)
        audit_seq, event_seq = _last_numbers(db)
        _record(db, changes, audit_seq, event_seq)
    except _CONSTRAINT_ERRORS as error:
        raise _BatchConflict from error
    except sqlite3.Error:
        raise
    except Exception as error:
        raise _BatchConflict from error
    return Written([None for _ in changes], event_seq)


def _write_one_by_one(db: sqlite3.Connection, changes: Sequence[Committed]) -> Written:
    batch = Batch(db)
    event_seq = batch.event_seq
    return Written([batch.add(change) for change in changes], event_seq)


def _last_numbers(db: sqlite3.Connection) -> tuple[int, int]:
    numbers: tuple[int, int] = db.execute(LAST_NUMBERS).fetchone()
    return numbers


def _record(db: sqlite3.Connection, changes: Sequence[Committed], audit_seq: int, event_seq: int) -> None:
    """Audit rows and events of `changes`, numbered on from the last ones."""
    entries = (change.audit for change in changes if change.audit is not None)
    audits = [
        mapping.AUDIT.row(AuditRow(seq, entry, leaf_of(entry, seq))) for seq, entry in enumerate(entries, audit_seq + 1)
    ]
    events = [event for change in changes for event in change.events]
    insert_rows(db, mapping.AUDIT, audits)
    insert_rows(db, mapping.EVENT, [(e.kind, e.subject, e.detail, seq) for seq, e in enumerate(events, event_seq + 1)])


def insert_rows(db: sqlite3.Connection, table: mapping.Table[Any], new: Sequence[mapping.Row]) -> None:
    """Many rows a statement, in powers of two, so that the statement cache holds a handful of texts."""
    done = 0
    while done < len(new):
        count = min(ROWS_A_STATEMENT_MAX, 1 << ((len(new) - done).bit_length() - 1))
        some = new[done : done + count]
        db.execute(_insert_many(table, count), [value for row in some for value in row])
        done += count


@cache
def _insert_many(table: mapping.Table[Any], count: int) -> str:
    marks = f"({', '.join('?' * len(table.columns))})"
    return f"INSERT INTO {table.name} ({table.listed()}) VALUES {', '.join([marks] * count)}"
