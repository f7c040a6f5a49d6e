"""A consistent copy of a registry's file while it is written to, and the integrity check of a copy.

The copy is of one moment: the source is read inside one read transaction, which in WAL mode holds up no writer.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from fleet.domain.audit_log import NODE_LEVELS, sound_leaves
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY, Frontier
from fleet.storage import mapping, queries
from fleet.storage.sqlite.connection import APPLICATION_ID, connect_reader

CopyProgress = Callable[[str, int], None]
"""Called with a table's name and the number of its rows copied so far."""

STEP_PAGES = 1_024  # 4 MiB at a time: between steps other threads have the interpreter

_ROWS = mapping.AUDIT.select("ORDER BY seq")
_LEAVES = "SELECT leaf FROM audit ORDER BY seq"
_FIRST_ROW = "SELECT min(seq) FROM audit"
_NODES = "SELECT hash FROM audit_node WHERE level = ? AND idx < ? ORDER BY idx"
_HEADS = mapping.HEAD.select("ORDER BY size")
_LAST_EVENT = queries.LAST_EVENT.sqlite
_FOREIGN_OBJECTS = "SELECT type FROM sqlite_master WHERE type IN ('trigger', 'view')"
_UNIT = NODE_LEVELS[0]


class CopyFacts(Struct, frozen=True):
    """How far the feed and the audit of a copy go."""

    event_seq: int
    audit_rows: int
    audit_root: bytes


def copy_registry(source: Path, target: Path) -> None:
    """Copy the registry `source`, which may be in use, to the new file `target`, 0600. Blocks; run it in a thread.

    Raises: FileExistsError; OSError or sqlite3.Error: the file could not be written.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(connect_reader(source)) as reader, closing(sqlite3.connect(target)) as copy:
        # Held for the whole copy: without it, each commit of another process would start the copy anew.
        reader.execute("BEGIN")
        reader.execute(_LAST_EVENT).fetchone()
        reader.backup(copy, pages=STEP_PAGES, sleep=0)
        reader.execute("COMMIT")


def facts_of(copy: Path) -> CopyFacts:
    """The facts of `copy`, which must not be written to meanwhile. Its audit is not checked.

    Raises: Invalid (`not-a-registry`).
    """
    with _opened(copy) as db:
        tree = _archived_tree(db).appended(leaf for (leaf,) in db.execute(_LEAVES))
        return CopyFacts(db.execute(_LAST_EVENT).fetchone()[0], tree.size, tree.root())


def check_copy(copy: Path) -> CopyFacts:
    """As `facts_of`, after looking at every page, every audit row and every head.

    Raises: Invalid: `not-a-registry`; `audit-changed` and the like, `audit-rewritten`.
    """
    with _opened(copy) as db:
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise Invalid("not-a-registry", "The registry in it is the database of another program.")
        if foreign := db.execute(_FOREIGN_OBJECTS).fetchone():  # our schema has none: they would run when we write
            raise Invalid("not-a-registry", f"The registry in it holds a {foreign[0]} that is not part of the schema.")
        complaint = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if complaint != "ok":
            raise Invalid("not-a-registry", f"The registry in it is damaged: {complaint}.")
        tree = _archived_tree(db)
        heads = {head.size: head.root for head in map(mapping.head_of, db.execute(_HEADS))}
        for leaf in sound_leaves(map(mapping.audit_of, db.execute(_ROWS)), after=tree.size):
            tree = tree.appended((leaf,))
            signed = heads.pop(tree.size, None)
            if signed is not None and signed != tree.root():
                raise Invalid(
                    "audit-rewritten", f"The audit is broken: its first {tree.size} rows are not those signed."
                )
        if heads and max(heads) > tree.size:
            raise Invalid("audit-removed", f"The audit is broken: rows after {tree.size} were signed and are missing.")
        return CopyFacts(db.execute(_LAST_EVENT).fetchone()[0], tree.size, tree.root())


@contextmanager
def _opened(copy: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(copy.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            yield db
    except (sqlite3.Error, ValueError) as error:
        raise Invalid("not-a-registry", f"The registry in it cannot be read: {error}.") from error


def _archived_tree(db: sqlite3.Connection) -> Frontier:
    """The tree over the rows that have been archived and dropped, out of the hashes that stayed."""
    first = db.execute(_FIRST_ROW).fetchone()[0] or 1
    units = (first - 1) >> _UNIT
    tree = EMPTY.appended(node for (node,) in db.execute(_NODES, (_UNIT, units)))
    if tree.size << _UNIT != first - 1:
        raise Invalid(
            "audit-removed", f"The audit is broken: row {first} is its first, and the hashes before it are missing."
        )
    return Frontier(tree.size << _UNIT, tree.hashes)
