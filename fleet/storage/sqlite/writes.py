"""Executes each Write's statements inside the open transaction. Runs in the writer's own thread."""

import sqlite3
from collections.abc import Sequence

from fleet.domain.audit_log import AuditNode, Sealed
from fleet.domain.errors import Conflict
from fleet.domain.writes import ImportDevices, TagDevice, Write
from fleet.storage import mapping, queries, statements
from fleet.storage.crls import Step
from fleet.storage.sqlite.connection import transaction
from fleet.storage.statement import for_sqlite
from fleet.storage.steps import serial_parameters, steps_of

DROP_TAG = "DELETE FROM device_tag WHERE key = ? AND value = ? AND device_id = ?"
# Without ON CONFLICT: which constraint fails says which Conflict it is.
LIST_DEVICE, LIST_ENTRY = (for_sqlite(table.insert("")) for table in (mapping.DEVICE, mapping.MANIFEST))
ADD_NODE = "INSERT INTO audit_node (level, idx, hash) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"


def apply(db: sqlite3.Connection, write: Write) -> None:
    """Raises: Conflict: a statement found no row."""
    if isinstance(write, ImportDevices):
        _list_devices(db, write)
        return
    if isinstance(write, TagDevice):
        _drop_tags(db, write.device_id)
    for statement, parameters in steps_of(write):
        cursor = db.execute(statement.sqlite, parameters)
        if statement.code:
            found = cursor.fetchone() if statement.is_query else cursor.rowcount
            if not found:
                raise statement.conflict(parameters)


def _drop_tags(db: sqlite3.Connection, device_id: str) -> None:
    """Found by the device's own row: `device_tag` has no index by device."""
    row = db.execute(queries.DEVICE.sqlite, (device_id,)).fetchone()
    if row is not None:
        db.executemany(DROP_TAG, mapping.tag_rows(mapping.DEVICE.of(row)))


def _list_devices(db: sqlite3.Connection, write: ImportDevices) -> None:
    try:
        db.executemany(LIST_DEVICE, (mapping.DEVICE.row(each.device) for each in write.devices))
        db.executemany(LIST_ENTRY, (mapping.MANIFEST.row(each.entry) for each in write.devices))
        tags = (row for each in write.devices for row in mapping.tag_rows(each.device))
        db.executemany(statements.ADD_TAG.sqlite, tags)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE):
            raise Conflict(*statements.LISTED_ALREADY) from error
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            raise Conflict(*statements.NO_SUCH_MODEL) from error
        raise
    for device in (each.device for each in write.devices if each.device.hardware_serial):
        if not db.execute(statements.SERIAL_IS_FREE.sqlite, serial_parameters(device)).fetchone():
            raise Conflict(*statements.LISTED_ALREADY)


def run_steps(db: sqlite3.Connection, steps: Sequence[Step]) -> None:
    """Execute all of `steps`, in one transaction. Raises: Conflict: nothing happened. sqlite3.Error: likewise."""
    with transaction(db):
        for statement, rows in steps:
            if statement.code:
                for row in rows:
                    if not db.execute(statement.sqlite, row).rowcount:
                        raise statement.conflict(row)
            else:
                db.executemany(statement.sqlite, rows)


def add_head(db: sqlite3.Connection, sealed: Sealed, nodes: Sequence[AuditNode]) -> None:
    """Store a new head, its frontier and the nodes that it completes, in one transaction.

    Raises: Conflict (`sealed-already`): nothing happened. sqlite3.Error: likewise.
    """
    with transaction(db):
        queries.must_be_newer(sealed.head.size, db.execute(queries.LARGEST_HEAD.sqlite).fetchone())
        db.execute(statements.ADD_HEAD.sqlite, mapping.HEAD.row(sealed.head))
        db.executemany(ADD_NODE, [(node.level, node.index, node.hash) for node in nodes])
        db.execute(statements.SET_FRONTIER.sqlite, (sealed.frontier.size, sealed.frontier.packed()))
