"""The station's ledger: append-only, one JSON object a line, on disk before the next step.

    {"at": "...", "event": "issued",      "device_id": ..., ...}    a certificate was issued
    {"at": "...", "event": "provisioned", ...}                      the board has proved its key and activated it
    {"at": "...", "event": "failed",      "code": "bad-proof", ...}

A line that a power loss cut off is skipped; any other line that is not a row refuses the whole file: a damaged row may
be the one that knows the board. Several stations of one machine may share a ledger.
"""

import contextlib
import errno
import importlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from firmware_tools.station.errors import LedgerError
from fleet.wire.hardware_serial import comparable

ISSUED, PROVISIONED, FAILED = "issued", "provisioned", "failed"
LINE_SIZE_MAX = 16 * 1024  # bytes; ours have under 1 KB

# O_NONBLOCK: a FIFO must not block the open that finds out what it is.
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | _FLAGS
_LINE_START = b'{"event": "'  # of every line that `append` writes
_LINE_END = re.compile(rb'(?<!\\)"\}\Z')
_LOCKED_BYTE = 1 << 30  # Windows locks are mandatory: no byte that is ever read or written


@dataclass(frozen=True, slots=True)
class Row:
    """One line. Hashes and serials in hex, times as RFC 3339 in UTC, "" for unknown values."""

    event: str
    at: str
    started_at: str
    seconds: float
    device_id: str
    model: str
    """The requested model of the fleet."""
    hardware_serial: str = ""
    board_model: str = ""
    firmware: str = ""
    certificate_serial: str = ""
    fingerprint: str = ""
    """SHA-256 of the certificate's DER."""
    key_sha256: str = ""
    """SHA-256 of the public key's SubjectPublicKeyInfo."""
    not_after: str = ""
    station: str = ""
    port: str = ""
    code: str = ""
    message: str = ""


class Ledger:
    """The ledger at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, row: Row) -> None:
        """Append `row`; it is on disk when this returns.

        Raises: LedgerError.
        """
        line = json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"
        try:
            descriptor = _opened(self._path, _APPEND)
            try:
                with _locked(descriptor):
                    size = os.fstat(descriptor).st_size
                    if size and not _ends_with_newline(descriptor, size):
                        line = b"\n" + line  # the last writer lost power
                    _write_all(descriptor, line)
                    os.fsync(descriptor)
                if size == 0:
                    _sync_directory(self._path.parent)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise LedgerError(
                "ledger-failed", f"The ledger {self._path} cannot be written: {error.strerror}."
            ) from error

    def open(self) -> None:
        """Create the ledger if there is none, and check that it can be appended to and that every line is a row.

        Raises: LedgerError.
        """
        try:
            os.close(_opened(self._path, _APPEND))
        except OSError as error:
            raise LedgerError(
                "ledger-failed", f"The ledger {self._path} cannot be written: {error.strerror}."
            ) from error
        for _ in self.rows():
            pass

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield each row, oldest first; none if there is no ledger yet.

        Raises: LedgerError, also for a line that is neither a row nor the cut-off start of one.
        """
        try:
            with os.fdopen(_opened(self._path, os.O_RDONLY | _FLAGS), "rb") as file:
                number = 0
                while line := file.readline(LINE_SIZE_MAX):
                    number += 1
                    if (row := _row_of(line)) is not None:
                        yield row
                    elif not _is_cut_off(line):
                        raise LedgerError(
                            "ledger-failed",
                            f"Line {number} of {self._path} is not a row of a ledger.",
                            "Check --ledger. If a row is damaged, restore the file from a copy, or mend that line.",
                        )
                    if not line.endswith(b"\n"):
                        return  # the last one, or another station is writing it
        except FileNotFoundError:
            return
        except OSError as error:
            raise LedgerError("ledger-failed", f"The ledger {self._path} cannot be read: {error.strerror}.") from error

    def check(self, device_id: str, hardware_serial: str) -> None:
        """Check that neither the board nor the device id has been provisioned otherwise.

        Raises: LedgerError (`board-known`, `device-id-taken`).
        """
        id_of_board: object = device_id
        board_of_id = hardware_serial
        for row in self.rows():
            if row.get("event") != PROVISIONED:
                continue
            if comparable(str(row["hardware_serial"])) == comparable(hardware_serial):
                id_of_board = row.get("device_id")
            if row.get("device_id") == device_id:
                board_of_id = str(row["hardware_serial"])
        if id_of_board != device_id:
            raise LedgerError(
                "board-known",
                f"Board {hardware_serial} was provisioned as {id_of_board}.",
                "Check the label. To give the board another device id: --replace.",
            )
        if comparable(board_of_id) != comparable(hardware_serial):
            raise LedgerError(
                "device-id-taken",
                f"{device_id} was given to board {board_of_id}.",
                "Choose another device id. If this board replaces that one: --replace.",
            )


def _opened(path: Path, flags: int) -> int:
    """A descriptor of the regular file at `path`. Raises: OSError, also if it is anything else."""
    with contextlib.suppress(FileNotFoundError):
        _require_regular(path.stat())  # before open, which alone has effects on some devices
    descriptor = os.open(path, flags, 0o640)
    try:
        _require_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _row_of(line: bytes) -> dict[str, object] | None:
    """The row in `line`; None if there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("event") not in (ISSUED, PROVISIONED, FAILED):
        return None
    return row if all(isinstance(row.get(name), str) for name in ("device_id", "hardware_serial")) else None


def _is_cut_off(line: bytes) -> bool:
    """Whether `line` is the start of a row, cut off by a power loss; the next row stands on a line of its own."""
    text = line.removesuffix(b"\n")
    if not text or len(line) == LINE_SIZE_MAX or _LINE_END.search(text):
        return False
    return text.startswith(_LINE_START) or _LINE_START.startswith(text)


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """An exclusive lock on an open file while the block runs, by the means of this system."""
    try:
        import fcntl
    except ImportError:
        with _byte_locked(descriptor):
            yield
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released by close
        yield


@contextlib.contextmanager
def _byte_locked(descriptor: int) -> Iterator[None]:
    """A lock on one byte far behind the end of the file. Raises: OSError if there are no locks, or it stays locked."""
    try:
        locking = importlib.import_module("msvcrt")
    except ImportError:
        raise OSError(errno.ENOLCK, "this system offers no file locks") from None
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    locking.locking(descriptor, locking.LK_LOCK, 1)  # waits 10 s
    try:
        yield
    finally:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        locking.locking(descriptor, locking.LK_UNLCK, 1)


def _ends_with_newline(descriptor: int, size: int) -> bool:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_directory(directory: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows: a directory cannot be opened
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
