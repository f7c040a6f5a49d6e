"""Certificates that CRLs have listed, outside the registry's own file: a restore of an older one leaves it in place.

    {"serial": "6a2f…", "ca": "3f…", "not_after": "…", "revoked_at": "…", "reason": 1}
    {"ca": "3f…", "through": 1796041755092, "last": "6a2f…"}     this CA's CRLs up to that number are noted

A restored registry does not know certificates that were issued after its backup, and CRLs must list them all the same.
Of several lines about one certificate the last one counts. Where a node publishes, lines are durable before a CRL lists
their certificates; the other nodes follow.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from fleet.config.durable_files import sync, write_file
from fleet.config.timestamps import rfc3339
from fleet.domain.crl import CrlEntry, CrlReason, Noted, Revocation

LINE_MAX = 512  # octets; the longest has two numbers of 40 and 128 hex digits


NAME = "revoked.jsonl"


class Place(Struct, frozen=True):
    """How far the CRLs of a CA are noted."""

    issuer: bytes
    number: int
    serial: str


class RevokedCertificates:
    """The journal at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, revocations: Path) -> "RevokedCertificates":
        """The one of the home whose journal of revocations is `revocations`."""
        return cls(revocations.with_name(NAME))

    def note(self, listed: Sequence[CrlEntry | Noted]) -> None:
        """Append `listed`; durable on return. Raises: OSError."""
        self._append(b"".join(_line(each.revocation, each.issuer) for each in listed if each.issuer))

    def follow(self, listed: Sequence[Noted]) -> None:
        """Append what CRLs of one CA brought, in their order, and how far it goes. Raises: OSError."""
        if listed:
            last = listed[-1]
            self._append(b"".join(_line(each.revocation, each.issuer) for each in listed) + _place_line(place_of(last)))

    def copy_to(self, path: Path) -> None:
        """A copy at `path`, if there is this journal. Raises: OSError."""
        with suppress(FileNotFoundError):
            write_file(path, self.path.read_bytes(), secret=True, force=True)

    def places(self) -> dict[bytes, Place]:
        """How far each CA's CRLs are noted. Raises: OSError."""
        return {place.issuer: place for line in self._lines() if (place := _read_place(line)) is not None}

    def _lines(self) -> Iterator[bytes]:
        with suppress(FileNotFoundError), self.path.open("rb") as opened:
            while line := opened.readline(LINE_MAX):
                yield line

    def _append(self, lines: bytes) -> None:
        with self._locked() as handle:
            is_new = not handle.seek(0, os.SEEK_END)
            if not is_new and not self._ends_whole():
                lines = b"\n" + lines  # a line that was cut off is left behind
            handle.write(lines)
            handle.flush()
            os.fsync(handle.fileno())
        if is_new:
            sync(self.path.parent)

    def read(self, now: datetime) -> dict[str, tuple[Revocation, bytes]]:
        """Revocation and CA's key identifier by serial number, of those that have not expired at `now`; lines that are
        damaged are left out. Raises: OSError.
        """
        found = {each[0].serial: each for line in self._lines() if (each := _read(line)) is not None}
        is_kept = {serial for serial, (held, _) in found.items() if held.not_after > now}
        return {serial: each for serial, each in found.items() if serial in is_kept}

    def trim(self, now: datetime) -> None:
        """Drop what has expired at `now` or is repeated. Raises: OSError."""
        with self._locked():
            lines = [_line(*each) for each in self.read(now).values()]
            lines += map(_place_line, self.places().values())
            write_file(self.path, b"".join(lines), secret=True, force=True)

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as opened:
            opened.seek(-1, os.SEEK_END)
            return opened.read() == b"\n"

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file, open at its end; the lock is on a file beside it, since the journal itself is replaced."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab") as opened:
                yield opened
        finally:
            os.close(lock)


def place_of(last: Noted) -> Place:
    """As far as `last`."""
    return Place(last.issuer, last.number, last.revocation.serial)


def _place_line(place: Place) -> bytes:
    return json.dumps({"ca": place.issuer.hex(), "through": place.number, "last": place.serial}).encode() + b"\n"


def _read_place(line: bytes) -> Place | None:
    if b'"through"' not in line or not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
        issuer, number, serial = bytes.fromhex(found["ca"]), found["through"], found["last"]
        is_whole = type(number) is int and 0 <= number < 1 << 63 and 1 <= len(serial) <= 40 and int(serial, 16) >= 0
        return Place(issuer, number, serial) if is_whole else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _line(revocation: Revocation, issuer: bytes) -> bytes:
    fields = {
        "serial": revocation.serial,
        "ca": issuer.hex(),
        "not_after": rfc3339(revocation.not_after),
        "revoked_at": rfc3339(revocation.revoked_at),
        "reason": int(revocation.reason),
    }
    return json.dumps(fields).encode() + b"\n"


def _read(line: bytes) -> tuple[Revocation, bytes] | None:
    try:
        found = json.loads(line)
        serial, reason = found["serial"], CrlReason(found["reason"])
        if not line.endswith(b"\n") or not 1 <= len(serial) <= 40 or int(serial, 16) < 0:
            return None
        not_after, revoked_at = (datetime.fromisoformat(found[name]) for name in ("not_after", "revoked_at"))
        if not_after.tzinfo is None or revoked_at.tzinfo is None:
            return None
        return Revocation(serial, not_after, revoked_at, reason.value), bytes.fromhex(found["ca"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
