"""Opens the registry's file: mode 0600, checks, migrations, and the lock around each write.

Everything here blocks, and runs in a connection's own thread.
"""

import errno
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from fleet.domain.audit_log import leaf_of
from fleet.domain.errors import FleetError, Invalid, NotFound, Unavailable
from fleet.storage import mapping
from fleet.storage.upgrade_log import log_upgrade

APPLICATION_ID = 0x464C5431  # "FLT1", in the file's header: another program's database is refused
SQLITE_VERSION_MIN = (3, 37, 0)  # STRICT tables
LOCK_WAIT_SECONDS = 10.0  # for another process's batch of writes, which takes milliseconds
LOCK_RETRY_SECONDS = 0.0005
BUSY_WAIT_SECONDS = 5.0  # for a program that writes without our lock, such as a sqlite3 shell
STATEMENTS_CACHED = 256
WRITER_CACHE_KIB = 65_536  # new certificates land on random pages of their indices: at a million they should be at hand
CHECKPOINT_PAGES = 4_000  # 16 MB of log: a page that many commits touch is written back once for all of them

_SEQ_SIZE = 8
_WIDER_THAN_OWNER = 0o077
_SCHEMA = Path(__file__).parents[1] / "schema" / "sqlite"


class WriteLock:
    """An OS file lock beside the database, held around each write transaction; `with lock: …`.

    SQLite before 3.51.3, which many Python builds carry, can lose a WAL reset when two connections write or checkpoint
    at once. With this lock only one does. The lock is flock(2): the kernel drops it when its process dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self.announced = 0
        """What `announce` has written last."""
        self.contended = False
        """Whether another process held it at the last attempt."""

    def __enter__(self) -> None:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        self.contended = False
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.contended = True
                if time.monotonic() > deadline:
                    message = f"Another process has been writing to the registry for over {LOCK_WAIT_SECONDS:.0f} s."
                    raise Unavailable("registry-busy", message, "Find it with: fuser -v registry.lock") from None
                time.sleep(LOCK_RETRY_SECONDS)
            else:
                return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._fd is not None  # noqa: S101  entered, or we would not be here
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def announce(self, event_seq: int) -> None:
        """Tell other processes that watch the file that events up to `event_seq` are committed. Call it locked."""
        assert self._fd is not None  # noqa: S101  locked
        self.announced = event_seq
        with suppress(OSError):  # a full disk: they poll as well
            os.pwrite(self._fd, event_seq.to_bytes(_SEQ_SIZE, "big"), 0)

    @staticmethod
    def read_newest(descriptor: int) -> int:
        """What was announced last, by any process, from a descriptor of the file."""
        return int.from_bytes(os.pread(descriptor, _SEQ_SIZE, 0), "big")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def unavailable(error: Exception) -> FleetError:
    """The FleetError for a database or disk error; a FleetError is returned as it is."""
    if isinstance(error, FleetError):
        return error
    return Unavailable(
        "registry-unavailable",
        f"The registry could not be read or written: {error}.",
        "Nothing was done. Look at the disk's free space and at the permissions of the registry's file.",
    )


def no_registry(path: Path) -> NotFound:
    """The error for a registry that is not at `path`."""
    return NotFound(
        "no-registry",
        f"There is no registry at {path}.",
        "Give the --home of your fleet, or restore its backup into a new home with: fleet restore",
    )


def connect_writer(path: Path, lock: WriteLock, create: bool) -> sqlite3.Connection:
    """The writing connection to `path`, on the newest schema.

    Raises: NotFound, Invalid, Unavailable: the message says what is wrong with the file.
    """
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        raise Unavailable("sqlite-too-old", f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed.")
    _make_or_check(path, create)
    try:
        with lock:
            return _open_and_migrate(path)
    except (sqlite3.Error, OSError) as error:
        raise unavailable(error) from error


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint."""
    uri = f"file:{quote(str(path))}?mode=ro"
    try:
        return sqlite3.connect(
            uri, uri=True, timeout=BUSY_WAIT_SECONDS, isolation_level=None, cached_statements=STATEMENTS_CACHED
        )
    except sqlite3.Error as error:
        raise unavailable(error) from error


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all that the block writes, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk may have rolled it back already
            db.execute("ROLLBACK")
        raise


def close_writer(db: sqlite3.Connection, lock: WriteLock) -> None:
    """Close `db`, under the lock: the last connection to close checkpoints."""
    try:
        with lock:
            db.close()
    except Unavailable:
        db.close()  # another process holds the lock and has the file open: this is not the last connection
    finally:
        lock.close()


def _make_or_check(path: Path, create: bool) -> None:
    try:
        if create:
            with suppress(FileExistsError):  # then it is checked like any other
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        mode = path.stat().st_mode
        # By path only: closing a descriptor of our own would drop the locks that another connection
        # of this process holds on the same file (POSIX), and with them the safety of its log.
        if not stat.S_ISREG(mode) or not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, "not a file that this user may read and write")
    except FileNotFoundError:
        raise no_registry(path) from None
    except OSError as error:
        raise Invalid(
            "registry-permissions",
            f"The registry {path} cannot be opened: {error.strerror}.",
            "It must be a file that the user running this may read and write.",
        ) from error
    if mode & _WIDER_THAN_OWNER:
        raise Invalid(
            "registry-permissions", f"The registry {path} is open to other users.", f"Close it with: chmod 600 {path}"
        )


def _open_and_migrate(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_WAIT_SECONDS, isolation_level=None, cached_statements=STATEMENTS_CACHED)
    try:
        _check_ours(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # in WAL mode: an fsync of the log at each commit
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    try:
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise Invalid("not-a-registry", f"{path} is not a sound database: {error}.") from error
    if tables and application != APPLICATION_ID:
        raise Invalid("not-a-registry", f"{path} is the database of another program.")


def migrations() -> list[tuple[int, str]]:
    """(number, SQL) of every migration, in order. A file `0001_what.sql` is number 1."""
    found = sorted(_SCHEMA.glob("*.sql"))
    return [(int(file.name.split("_", 1)[0]), file.read_text(encoding="utf-8")) for file in found]


def _audit_leaf(seq: int, *columns: Any) -> bytes:
    return leaf_of(mapping.audit_of((seq, *columns, b"")).entry, seq)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    db.create_function("audit_leaf", 8, _audit_leaf, deterministic=True)
    db.create_function("serial_octets", 1, mapping.serial_octets, deterministic=True)
    have = db.execute("PRAGMA user_version").fetchone()[0]
    steps = migrations()
    newest = steps[-1][0]
    if have > newest:
        raise Invalid(
            "registry-newer",
            f"The registry {path} has schema {have}; this program knows schemas up to {newest}.",
            "Use the program that wrote it, or a newer one.",
        )
    for number, sql in steps:
        if number > have:
            marks = f"PRAGMA user_version = {number}; PRAGMA application_id = {APPLICATION_ID};"
            try:
                db.executescript(f"BEGIN IMMEDIATE; {sql}; {marks} COMMIT;")
            except sqlite3.Error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
    log_upgrade(str(path), have, newest)
