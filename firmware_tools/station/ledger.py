"""The station's ledger: one JSON object a line, appended, on disk before the next step is taken.

    {"at": "...", "event": "issued",      "device_id": ..., ...}    a certificate has left the authority
    {"at": "...", "event": "provisioned", ...}                      the board has proved its key and switched
    {"at": "...", "event": "failed",      "code": "bad-proof", ...}

A line that a power cut left half-written is passed over; nothing before it is touched.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from firmware_tools.station.errors import LedgerError

ISSUED, PROVISIONED, FAILED = "issued", "provisioned", "failed"
LINE_SIZE_MAX = 16 * 1024  # bytes; ours have under 1 KB


@dataclass(frozen=True, slots=True)
class Row:
    """One line. Hashes and serials in hex, times as RFC 3339 in UTC, "" for what is not known."""

    event: str
    at: str
    started_at: str
    seconds: float
    device_id: str
    model: str
    """The fleet's model that was asked for."""
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
    """The ledger at `path`; several stations on one machine may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, row: Row) -> None:
        """Write `row`; it is on disk when this returns.

        Raises: LedgerError.
        """
        line = json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # the last writer lost its power
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

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield each whole line, oldest first; none when there is no ledger yet.

        Raises: LedgerError.
        """
        try:
            with self._path.open("rb") as file:
                while line := file.readline(LINE_SIZE_MAX):
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue  # half a line
                    if isinstance(row, dict):
                        yield row
        except FileNotFoundError:
            return
        except OSError as error:
            raise LedgerError("ledger-failed", f"The ledger {self._path} cannot be read: {error.strerror}.") from error

    def check(self, device_id: str, hardware_serial: str) -> None:
        """Return when neither the board nor the device id has been given away to another.

        Raises: LedgerError (`board-known`, `device-id-taken`).
        """
        id_of_board: object = device_id
        board_of_id: object = hardware_serial
        for row in self.rows():
            if row.get("event") != PROVISIONED:
                continue
            if row.get("hardware_serial") == hardware_serial:
                id_of_board = row.get("device_id")
            if row.get("device_id") == device_id:
                board_of_id = row.get("hardware_serial")
        if id_of_board != device_id:
            raise LedgerError(
                "board-known",
                f"Board {hardware_serial} was provisioned as {id_of_board}.",
                "Its label or yours is wrong. To give it another device id: --replace.",
            )
        if board_of_id != hardware_serial:
            raise LedgerError(
                "device-id-taken",
                f"{device_id} was given to board {board_of_id}.",
                "Choose another device id. If this board takes its place: --replace.",
            )


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
