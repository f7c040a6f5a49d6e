"""Reading the audit out of a registry's file as an auditor does: row by row, trusting nothing in it.

The file may be the live one or a copy from a backup, and may have been edited by hand.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from fleet.domain.changes import AuditRow
from fleet.domain.errors import Invalid, NotFound
from fleet.storage import rows

_ALL = f"SELECT {rows.columns(rows.AUDIT_COLUMNS)} FROM audit ORDER BY seq"  # noqa: S608  our own constants


def audit_rows(path: Path, *, is_copy: bool) -> Iterator[AuditRow]:
    """Every audit row in the file `path`, in order, all of one moment.

    The live registry must be held open (SqliteRegistry) while this reads; `is_copy` says that nobody writes to it.

    Raises: NotFound (`no-registry`). Invalid: `not-a-registry`; `audit-changed` where a row or the file around it
    cannot be read any more.
    """
    if not path.is_file():
        raise NotFound("no-registry", f"There is no registry at {path}.")
    # A copy without its log needs no shared memory beside it, and may lie where we cannot write.
    alone = is_copy and not Path(f"{path}-wal").exists()
    uri = f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if alone else ''}"
    last = 0
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            # A flipped byte may end a text's UTF-8: it is to be found by its hash, not by a failing decoder.
            db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            for row in db.execute(_ALL):
                yield rows.audit_of(row)
                last = row[0]
    except sqlite3.DatabaseError as error:
        if last == 0:
            raise Invalid("not-a-registry", f"{path} cannot be read as a registry: {error}.") from error
        raise Invalid("audit-changed", f"The audit is broken: the file cannot be read after row {last}.") from error
