"""A batch of Changes as one transaction, which is one fsync. Runs in the writer's own thread.

1  every Change's writes, then all audit rows and all events         in one go
2  only if one of them found otherwise: undone, and again            each Change behind a savepoint, undone alone
3  COMMIT
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from fleet.domain.audit_log import leaf_of
from fleet.domain.changes import AuditRow, Change
from fleet.domain.errors import Conflict
from fleet.storage import mapping, queries
from fleet.storage.sqlite.writes import apply

T = TypeVar("T")

ROWS_A_STATEMENT_MAX = 64  # 9 values each; SQLite takes 32,766

_AGAINST_THE_RULES = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)


class _FoundOtherwise(Exception):
    """A Change of a batch that was being written in one go could not be; nothing says that the others cannot."""


class Batch:
    """The Changes of one transaction, each undone alone if need be: knows where the audit and the feed stand, and moves
    them on.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._audit_seq, self._event_seq = _last_numbers(db)

    def add(self, change: Change) -> Exception | None:
        """Write `change` whole, or write nothing and say why.

        Raises: sqlite3.OperationalError, sqlite3.DatabaseError: the database itself failed, and the batch with it.
        """
        self._db.execute("SAVEPOINT one")
        try:
            for write in change.writes:
                apply(self._db, write)
            _record(self._db, (change,), self._audit_seq, self._event_seq)
        except _AGAINST_THE_RULES as error:
            return self._undo(Conflict("against-the-rules", f"The registry's own rules forbid this: {error}."))
        except sqlite3.Error:
            raise
        except Exception as error:  # one caller's bad value must not fail the others in the batch
            return self._undo(error)
        self._db.execute("RELEASE one")
        self._audit_seq += 1
        self._event_seq += len(change.events)
        return None

    def _undo(self, error: Exception) -> Exception:
        self._db.execute("ROLLBACK TO one")
        self._db.execute("RELEASE one")
        return error


def write_batch(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Exception | None]:
    """Commit `changes` in one transaction and one fsync; one outcome each, None for a Change that was committed.

    Mostly all of them hold, and are written in one go. When one finds otherwise, that is undone, and each is written
    behind a savepoint of its own.

    Raises: sqlite3.Error: nothing of any of them happened.
    """
    try:
        return _in_transaction(db, lambda: _write_in_one_go(db, changes))
    except _FoundOtherwise:
        return _in_transaction(db, lambda: _write_one_by_one(db, changes))


def _write_in_one_go(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Exception | None]:
    """Half the statements of `_write_one_by_one`: at each, this thread may have to wait for the interpreter.

    Raises: _FoundOtherwise: a Change does not hold. sqlite3.Error: the database itself failed.
    """
    try:
        for change in changes:
            for write in change.writes:
                apply(db, write)
        _record(db, changes, *_last_numbers(db))
    except _AGAINST_THE_RULES as error:
        raise _FoundOtherwise from error
    except sqlite3.Error:
        raise
    except Exception as error:
        raise _FoundOtherwise from error
    return [None for _ in changes]


def _write_one_by_one(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Exception | None]:
    batch = Batch(db)
    return [batch.add(change) for change in changes]


def _in_transaction(db: sqlite3.Connection, write: Callable[[], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        answer = write()
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have rolled it back already
            db.execute("ROLLBACK")
        raise
    return answer


def _last_numbers(db: sqlite3.Connection) -> tuple[int, int]:
    audit_seq: int = db.execute(queries.LAST_AUDIT.sqlite).fetchone()[0]
    event_seq: int = db.execute(queries.LAST_EVENT.sqlite).fetchone()[0]
    return audit_seq, event_seq


def _record(db: sqlite3.Connection, changes: Sequence[Change], audit_seq: int, event_seq: int) -> None:
    """Audit rows and events of `changes`, numbered on from the last ones."""
    audits = [
        mapping.AUDIT.row(AuditRow(seq, change.audit, leaf_of(change.audit, seq)))
        for seq, change in enumerate(changes, audit_seq + 1)
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
