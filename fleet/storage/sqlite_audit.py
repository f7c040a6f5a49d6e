"""Reading the audit out of a registry's file as an auditor does: row by row, trusting nothing in it.

The file may be the live one or a copy from a backup, and may have been edited by hand.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from fleet.domain.changes import AuditRow
from fleet.domain.errors import Invalid, NotFound
from fleet.storage import rows

_ALL = f"SELECT {rows.columns(rows.AUDIT_COLUMNS)} FROM audit ORDER BY seq"  # noqa: S608  our own constants


@contextmanager
def audit_rows(path: Path, *, is_copy: bool) -> Iterator[Iterator[AuditRow]]:
    """Open the file `path` and give its audit rows in order, all of one moment; `with audit_rows(…) as rows:`.

    The live registry must be held open (SqliteRegistry) meanwhile; `is_copy` says that nobody writes to it.

    Raises: NotFound (`no-registry`). Invalid: `not-a-registry`; `audit-changed` where a row or the file around it
    cannot be read any more.
    """
    if not path.is_file():
        raise NotFound("no-registry", f"There is no registry at {path}.")
    # A copy without its log needs no shared memory beside it, and may lie where we cannot write.
    alone = is_copy and not Path(f"{path}-wal").exists()
    uri = f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if alone else ''}"
    try:
        db = sqlite3.connect(uri, uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    with closing(db):
        # A flipped byte may end a text's UTF-8: it is to be found by its hash, not by a failing decoder.
        db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        yield _each(db, path)


def _each(db: sqlite3.Connection, path: Path) -> Iterator[AuditRow]:
    last = 0
    try:
        for row in db.execute(_ALL):
            yield rows.audit_of(row)
            last = row[0]
    except sqlite3.DatabaseError as error:
        if last == 0:
            raise _unreadable(path, error) from error
        raise Invalid("audit-changed", f"The audit is broken: the file cannot be read after row {last}.") from error


def _unreadable(path: Path, error: sqlite3.Error) -> Invalid:
    return Invalid("not-a-registry", f"{path} cannot be read as a registry: {error}.")
