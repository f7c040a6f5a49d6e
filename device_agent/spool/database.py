"""The spool's file: SQLite in the home, in which each queue is a table. One process has it open at a time.

What is added is stored at `commit`, that of all queues by one transaction and one fsync. Every failure of the file is a
`problem` that the caller who wanted to store gets: it ends nothing else. A damaged file is moved aside.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.log.event_log import EventLog
from device_agent.spool.spool_clock import SpoolClock
from device_agent.spool.table_queue import TableQueue
from device_agent.store.atomic_files import sync_directory
from fleet.est_client.validity import CLOCK_FLOOR

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "spool.db"
DAMAGED_NAME = "spool.damaged.db"
SUFFIXES = ("", "-wal", "-shm", "-journal")
TABLES = ("outgoing", "rejected", "incoming")
VERSION = 1  # of the schema, in user_version
REMOVALS_MAX = 256  # that wait for a commit of their own: after a power loss, so many are sent again
REMOVAL_SECONDS_MAX = 1.0
RETRY_SECONDS = 5.0  # between two attempts to open a file that cannot be opened
_FREE_PAGES_MAX = 256  # 1 MiB is kept for the next outage

# EXCLUSIVE: no other process, and no shared memory file. FULL: each commit is on the disk when it returns; NORMAL would
# survive SIGKILL, but not a power loss. The cache and the log are small: memory and flash are.
_SETTINGS = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA cache_size = -256;
PRAGMA wal_autocheckpoint = 256;
PRAGMA journal_size_limit = 1048576;
"""


class Database:
    """Opened at its first use, and again after a failure. `queues` by TABLES. No sqlite3.Error leaves it."""

    def __init__(self, home: Path, log: EventLog, now: SpoolClock, monotonic: Callable[[], float]) -> None:
        self._path = home / FILE_NAME
        self._log = log
        self._now = now
        self._monotonic = monotonic
        self._connection: sqlite3.Connection | None = None
        self._is_ready = False
        """Whether the connection has its settings and tables."""
        self._retry_at = 0.0
        self._remove_by: float | None = None
        self.problem = ""
        self.damaged = 0
        """Files moved aside since the start."""
        self.queues = {name: TableQueue(name, self) for name in TABLES}

    def commit(self) -> None:
        """Store and remove what is pending. Removals alone may wait: a lost one is a message sent twice."""
        if not any(queue.unstored for queue in self.queues.values()) and not self._removals_are_due():
            return
        if self._write():
            return
        problem = f"{self.problem}."
        told = [on_stored for queue in self.queues.values() for on_stored in queue.not_written()]
        for on_stored in told:
            on_stored(problem)
        # Alone, since removals need less room, and make some.
        if not any(queue.unremoved for queue in self.queues.values()) or not self._write():
            self._remove_by = self._monotonic() + RETRY_SECONDS

    @property
    def is_blocked(self) -> bool:
        """Whether storing has failed a moment ago, so that who can wait should."""
        return self._monotonic() < self._retry_at

    def reader(self) -> "sqlite3.Connection | None":
        """The connection to read from; None while there is none."""
        return None if self._connection is None and self.is_blocked else self._opened()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A failure of the file in the block becomes the `problem`."""
        with self._failures():
            yield

    def close(self) -> None:
        """Store what is pending, and release the file."""
        for _ in range(2):  # again for what those who are told by the first remove
            self._remove_by = 0.0
            self.commit()
        self._disconnect()

    def _write(self) -> bool:
        for _ in range(2):  # again after a damaged file was moved aside
            damaged, told = self.damaged, None
            if (connection := self._opened()) is None:
                return False
            with self._failures():
                connection.execute("BEGIN IMMEDIATE")
                for queue in self.queues.values():
                    queue.write(connection)
                connection.execute("COMMIT")
                # All queues first: who is told may remove or add.
                told = [on_stored for queue in self.queues.values() for on_stored in queue.written()]
            if told is not None:
                self.problem, self._remove_by = "", None
                for on_stored in told:
                    on_stored("")
                with self._failures():
                    self._shrink(connection)
                return True
            if self.damaged == damaged:
                return False
        return False

    def _removals_are_due(self) -> bool:
        count = sum(queue.unremoved for queue in self.queues.values())
        if not count:
            return False
        if self._remove_by is None:
            self._remove_by = self._monotonic() + REMOVAL_SECONDS_MAX
        return self._monotonic() >= self._remove_by or (count >= REMOVALS_MAX and not self.problem)

    def _opened(self) -> "sqlite3.Connection | None":
        for _ in range(2):
            if self._connection is not None:
                break
            with self._failures():
                self._connect()
        return self._connection

    def _connect(self) -> "sqlite3.Connection":
        import sqlite3  # not before: it is 2 MB, and the spool may be off

        created = not self._path.exists()
        # O_NOFOLLOW and the mode, neither of which SQLite has: its other files take the mode of this one.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        if created:
            sync_directory(self._path.parent)
        connection = sqlite3.connect(self._path, timeout=0.0, isolation_level=None, cached_statements=16)
        self._connection, self._is_ready = connection, False
        connection.executescript(_SETTINGS)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, and this agent knows {VERSION}")
        connection.execute("BEGIN IMMEDIATE")
        if version == 0:
            for queue in self.queues.values():
                queue.create(connection)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        for queue in self.queues.values():
            queue.load(connection)
        if self._now.is_set:
            for queue in self.queues.values():
                queue.correct_times(connection, CLOCK_FLOOR.timestamp(), self._now())
        connection.execute("COMMIT")
        self.problem, self._is_ready = "", True
        return connection

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            # An error without a code is of the sqlite3 module: of a file that is not as we made it.
            codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)
            unreadable = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
            is_damaged = isinstance(error, sqlite3.Error) and (
                code is None or code & 0xFF in codes or code in unreadable
            )
            problem = f"The spool {self._path.name} cannot be used: {reason}"
            if problem != self.problem:
                self._log.event("spool-failed", file=self._path.name, reason=reason)
            self.problem = problem
            self._retry_at = self._monotonic() + RETRY_SECONDS
            if is_damaged:
                self._move_aside(reason)
            elif not self._roll_back():
                self._disconnect()

    def _roll_back(self) -> bool:
        """Whether the connection can still be read, as on a full disk."""
        import sqlite3

        if self._connection is None:
            return True
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        with contextlib.suppress(sqlite3.Error):
            # On a full disk, room for the log may be in the file, where delivered messages have been.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return self._is_ready

    def _move_aside(self, reason: str) -> None:
        """Make place for a new file, into which what can still be read of the old one is copied."""
        damaged, self._connection = self._connection, None
        try:
            self._rename()
            self.damaged += 1
            self._log.event("spool-damaged", kept_as=DAMAGED_NAME, reason=reason)
            saved = self._copy_from(damaged) if damaged is not None else 0
            self._log.event("spool-created", saved=saved)
        except OSError as error:
            self.problem = f"The spool is damaged, and cannot be moved aside: {error.strerror}"
        finally:
            if damaged is not None:
                _close(damaged)

    def _rename(self) -> None:
        target = self._path.with_name(DAMAGED_NAME)
        for suffix in SUFFIXES:
            Path(f"{target}{suffix}").unlink(missing_ok=True)
        for suffix in reversed(SUFFIXES):  # the file itself last: without it, its log means nothing
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").rename(f"{target}{suffix}")
        sync_directory(self._path.parent)

    def _copy_from(self, damaged: "sqlite3.Connection") -> int:
        import sqlite3

        with contextlib.suppress(sqlite3.Error):
            damaged.execute("ROLLBACK")
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            saved = sum(queue.copy(damaged, connection) for queue in self.queues.values())
            connection.execute("COMMIT")
            for queue in self.queues.values():
                queue.load(connection)
        except sqlite3.Error as error:
            self.problem = f"The spool cannot be created: {error}"
            self._disconnect()
            return 0
        return saved

    def _shrink(self, connection: "sqlite3.Connection") -> None:
        """Give the file's free pages back once the spool is empty."""
        if self.queues["outgoing"].count == 0:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            if free > _FREE_PAGES_MAX:
                connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free a single page

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _close(connection)


def _close(connection: "sqlite3.Connection") -> None:
    import sqlite3

    with contextlib.suppress(sqlite3.Error):
        connection.close()
