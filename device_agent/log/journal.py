"""systemd's journal, by its native protocol: one datagram an entry (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

import enum
import os
import socket
from collections.abc import Mapping
from typing import Self, TextIO

ADDRESS = "/run/systemd/journal/socket"
IDENTIFIER = "device-agent"


class Priority(enum.IntEnum):
    """Of syslog (RFC 5424, 6.2.1): smaller is worse."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Journal:
    """Entries of this program. `address` is the path of the journal's socket, "" the system's."""

    def __init__(self, address: str = "") -> None:
        self._address = address or ADDRESS

    @classmethod
    def behind(cls, stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> Self | None:
        """The journal if it reads `stream`, which systemd says in $JOURNAL_STREAM; else None."""
        try:
            found = os.fstat(stream.fileno()) if stream is not None else None
        except (OSError, ValueError):
            return None
        is_journal = found is not None and environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
        return cls() if is_journal else None

    def send(self, priority: Priority, message: str, fields: Mapping[str, str]) -> bool:
        """Write one entry; each field is named DEVICE_ and its key. False if it could not be written. Never blocks."""
        entry = {"MESSAGE": message, "PRIORITY": str(int(priority)), "SYSLOG_IDENTIFIER": IDENTIFIER}
        entry |= {f"DEVICE_{key.upper()}": value for key, value in fields.items()}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(b"".join(_field(key, value) for key, value in entry.items()), self._address)
        except OSError:
            return False
        return True


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return f"{name}=".encode() + data + b"\n"
    # A value with a newline follows its length, so that it cannot begin a field of its own.
    return f"{name}\n".encode() + len(data).to_bytes(8, "little") + data + b"\n"
