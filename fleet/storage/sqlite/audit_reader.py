"""The audit of a copy of a registry's file, read as an auditor does: trusting nothing in it.

The copy may come from a backup, may have been edited, and may be damaged.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from fleet.domain.changes import AuditRow
from fleet.domain.errors import Invalid, NotFound
from fleet.storage.queries import Query
from fleet.storage.reader import SqlAuditReader
from fleet.storage.sqlite import reads

T = TypeVar("T")


@contextmanager
def audit_of_copy(path: Path) -> Iterator["SqliteAuditCopy"]:
    """The audit in the file `path`, which must not be written to meanwhile; `with audit_of_copy(path) as reader:`.

    Raises: NotFound (`no-registry`). Invalid (`not-a-registry`). OSError: there is no working directory.
    """
    place = path.absolute()
    if not path.is_file():
        raise NotFound("no-registry", f"There is no registry at {path}.")
    # A copy without its log needs no shared memory beside it, and may lie where we cannot write.
    alone = not Path(f"{path}-wal").exists()
    uri = f"file:{quote(str(place))}?mode=ro{'&immutable=1' if alone else ''}"
    try:
        db = sqlite3.connect(uri, uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error
    with closing(db):
        yield SqliteAuditCopy(path, db)


class SqliteAuditCopy(SqlAuditReader):
    """The audit of a copy. Its methods block: it is for a command, not for a server.

    Each raises: Invalid: `not-a-registry`; `audit-changed`, and the like, where a value in it cannot be what was
    written.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db
        self._last = 0  # the last row that could be read

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        with self._readable():
            page = reads.audit(self._db, after, limit)
        self._last = page[-1].seq if page else self._last
        return page

    async def _read(self, query: Query[T], *parameters: Any) -> list[T]:
        with self._readable():
            return reads.rows_of(self._db, query, *parameters)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if self._last == 0:
                raise _unreadable(self._path, error) from error
            message = f"The audit is broken: the file cannot be read after row {self._last}."
            raise Invalid("audit-changed", message) from error


def _unreadable(path: Path, error: sqlite3.Error) -> Invalid:
    return Invalid("not-a-registry", f"{path} cannot be read as a registry: {error}.")
