"""A queue as a table of the spool's database. Each row has a checksum: SQLite's pages have none."""

import json
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from device_agent.packets import NO_EXTRAS, Extras
from device_agent.spool.message_queue import Entry, Message, OnStored

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager

ROW_SIZE = 100  # bytes of a row beside topic and payload, about
BATCH_MAX = 128  # messages stored together: they are in memory until then
BATCH_SIZE_MAX = 512 * 1024  # bytes of these: a commit is in the log at once, whatever is bounded otherwise
OVERDUE_MAX = 100  # rows looked at together
ROW_MAX = 2**62  # no device gets there: a larger one is damaged, and after the largest of SQLite there is none
TIME_MAX = 253402300800.0  # seconds since 1970: the end of the year 9999
READ_SIZE_MAX = 512 * 1024  # bytes of payload read together: they are in memory until sent

# TABLE_ is the name of the table.
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS TABLE_ (row INTEGER PRIMARY KEY, at REAL, expires_at REAL, qos INTEGER, id BLOB,
    topic BLOB, payload BLOB, extras BLOB, note BLOB, checksum INTEGER)""",
    "CREATE INDEX IF NOT EXISTS TABLE__expires ON TABLE_ (expires_at) WHERE expires_at IS NOT NULL",
)
_SELECT = "SELECT row, at, expires_at, qos, id, topic, payload, extras, note, checksum FROM TABLE_"
_INSERT = "INSERT INTO TABLE_ VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT = (
    "SELECT coalesce(min(row), 1), coalesce(max(row), 0), count(*),"
    " coalesce(sum(length(topic) + length(payload) + length(extras) + ?), 0) FROM TABLE_"
)
_CORRECT_TIMES = "UPDATE TABLE_ SET expires_at = expires_at - at + :now, at = :now WHERE at < :floor OR at > :now"


class File(Protocol):
    """The interface of the database that its tables need."""

    problem: str

    @property
    def is_blocked(self) -> bool: ...

    def reader(self) -> "sqlite3.Connection | None": ...
    def reading(self) -> "AbstractContextManager[None]": ...
    def commit(self) -> None: ...


class TableQueue:
    is_durable = True

    def __init__(self, name: str, file: File) -> None:
        self._name = name
        self._file = file
        self._row = 0
        self._added: list[tuple[Entry, OnStored | None]] = []
        self._added_size = 0
        self._removed: dict[int, int] = {}
        """Rows to remove, and their sizes: not their messages, since a full disk may keep them here for long."""
        self.count = 0
        self.size = 0
        self.unreadable = 0
        """Rows dropped since the start, because their checksum was wrong."""

    @property
    def unstored(self) -> int:
        return len(self._added)

    @property
    def unremoved(self) -> int:
        return len(self._removed)

    @property
    def is_blocked(self) -> bool:
        return self._file.is_blocked

    def size_of(self, message: Message) -> int:
        return len(_bytes(message.topic)) + len(message.payload) + len(_encoded(message.extras)) + ROW_SIZE

    def add(self, message: Message, at: float, on_stored: OnStored | None = None, note: str = "") -> Entry:
        self._row += 1
        entry = Entry(self._row, at, message, note)
        self._added.append((entry, on_stored))
        size = self.size_of(entry.message)
        self._added_size += size
        self._count(size, 1)
        if len(self._added) >= BATCH_MAX or self._added_size >= BATCH_SIZE_MAX:
            self._file.commit()
        return entry

    def remove(self, entry: Entry) -> None:
        self._remove(entry.row, self.size_of(entry.message))

    def read(self, after: int, limit: int) -> list[Entry]:
        return self._select("row > ? ORDER BY row LIMIT ?", after, limit)

    def overdue(self, after: int, now: float, age_seconds_max: float) -> list[Entry]:
        # By age, only the oldest can be over; by time to live any, which has an index.
        entries = self._select("row > ? ORDER BY row LIMIT ?", after, 1)
        if entries and entries[0].is_over(now, age_seconds_max):
            entries = self._select("row > ? ORDER BY row LIMIT ?", after, OVERDUE_MAX)
        entries += self._select("expires_at <= ? AND row > ? LIMIT ?", now, after, OVERDUE_MAX)
        return list({entry.row: entry for entry in entries if entry.is_over(now, age_seconds_max)}.values())

    def commit(self) -> None:
        self._file.commit()

    # Interface of the database

    def create(self, connection: "sqlite3.Connection") -> None:
        for statement in _SCHEMA:
            self._execute(connection, statement)

    def load(self, connection: "sqlite3.Connection") -> None:
        """Count what is in the table. Raises: sqlite3.Error, also if it has a row of a number that we never give."""
        import sqlite3

        first, last, self.count, self.size = self._execute(connection, _COUNT, (ROW_SIZE,)).fetchone()
        if first < 1 or last > ROW_MAX:
            raise sqlite3.DatabaseError(f"it has a row of number {first if first < 1 else last}")
        self._row = max(self._row, last)
        there = {row for (row,) in self._execute(connection, "SELECT row FROM TABLE_")} if self._removed else set()
        for row, size in self._removed.items():
            if row in there:
                self._count(size, -1)
        for entry, _ in self._added:
            self._count(self.size_of(entry.message), 1)

    def correct_times(self, connection: "sqlite3.Connection", floor: float, now: float) -> None:
        """Rows dated before the clock was set, or in the future, count as accepted now."""
        self._execute(connection, _CORRECT_TIMES, {"now": now, "floor": floor})

    def write(self, connection: "sqlite3.Connection") -> None:
        # Removals first: their pages have room for what is added.
        delete = "DELETE FROM TABLE_ WHERE row = ?".replace("TABLE_", self._name)
        connection.executemany(delete, ((row,) for row in self._removed))
        added = (_values(entry) for entry, _ in self._added if entry.row not in self._removed)
        connection.executemany(_INSERT.replace("TABLE_", self._name), added)

    def written(self) -> list[OnStored]:
        """What was pending is stored; whom to tell."""
        added, self._added, self._added_size, self._removed = self._added, [], 0, {}
        return [on_stored for _, on_stored in added if on_stored is not None]

    def not_written(self) -> list[OnStored]:
        """What was added is not stored; whom to tell."""
        added, self._added, self._added_size = self._added, [], 0
        for entry, _ in added:
            if self._removed.pop(entry.row, None) is None:
                self._count(self.size_of(entry.message), -1)
        return [on_stored for _, on_stored in added if on_stored is not None]

    def copy(self, damaged: "sqlite3.Connection", into: "sqlite3.Connection") -> int:
        """Copy the rows that can be read, up to the first that cannot. Returns how many."""
        import sqlite3

        saved = 0
        try:
            for values in self._execute(damaged, f"{_SELECT} ORDER BY row"):
                if (entry := _entry(values)) is not None:
                    self._execute(into, _INSERT, _values(entry))
                    saved += 1
        except sqlite3.Error:
            pass
        return saved

    def _select(self, where: str, *values: float) -> list[Entry]:
        """Entries in order, up to READ_SIZE_MAX bytes of them. The last value is a limit."""
        connection = self._file.reader()
        if connection is None:
            return []
        entries: list[Entry] = []
        *bounds, limit = values
        size = 0
        with self._file.reading():
            rows = self._execute(connection, f"{_SELECT} WHERE {where}", (*bounds, limit + len(self._removed)))
            for row in rows:
                if row[0] in self._removed:
                    continue
                entry = _entry(row)
                if entry is None:
                    self.unreadable += 1
                    self._remove(row[0], sum(len(each) for each in row[5:8] if isinstance(each, bytes)) + ROW_SIZE)
                    continue
                entries.append(entry)
                size += len(entry.message.payload)
                if len(entries) == limit or size > READ_SIZE_MAX:
                    break
            rows.close()
        return entries

    def _execute(self, connection: "sqlite3.Connection", statement: str, values: Any = ()) -> "sqlite3.Cursor":
        return connection.execute(statement.replace("TABLE_", self._name), values)

    def _remove(self, row: int, size: int) -> None:
        if row not in self._removed:
            self._removed[row] = size
            self._count(size, -1)

    def _count(self, size: int, sign: int) -> None:
        self.count += sign
        self.size += sign * size


def _values(entry: Entry) -> tuple[object, ...]:
    message = entry.message
    texts = (_encoded(message.extras), _bytes(entry.note))
    columns = (bytes.fromhex(message.id), _bytes(message.topic), message.payload, *texts)
    return (entry.row, entry.at, entry.expires_at, message.qos, *columns, _checksum(*columns))


def _entry(values: tuple[Any, ...]) -> Entry | None:
    """The entry in a row; None if it is damaged."""
    row, at, _, qos, *columns, checksum = values
    if not all(isinstance(column, bytes) for column in columns) or checksum != _checksum(*columns):
        return None
    if not 1 <= row <= ROW_MAX or not isinstance(at, float) or not 0.0 <= at < TIME_MAX or qos not in (0, 1):
        return None
    message_id, topic, payload, extras, note = columns
    message = Message(_text(topic), payload, qos, extras=_decoded(extras), id=message_id.hex())
    return Entry(row, at, message, _text(note))


def _encoded(extras: Extras) -> bytes:
    if extras == NO_EXTRAS:
        return b""
    return json.dumps([extras.response_topic, extras.correlation.hex(), extras.expiry_seconds, extras.user]).encode()


def _decoded(data: bytes) -> Extras:
    """Of data whose checksum is right."""
    if not data:
        return NO_EXTRAS
    response_topic, correlation, expiry_seconds, user = json.loads(data)
    return Extras(
        response_topic, bytes.fromhex(correlation), expiry_seconds, tuple((name, value) for name, value in user)
    )


def _checksum(*columns: bytes) -> int:
    checksum = 0
    for column in columns:
        checksum = zlib.crc32(column, zlib.crc32(len(column).to_bytes(4), checksum))
    return checksum


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
