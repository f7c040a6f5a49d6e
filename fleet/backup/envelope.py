"""Encrypted stream with a passphrase: scrypt derives the key, AES-256-GCM encrypts each chunk.

    magic "FLTBAK1\\n" | log2 N | r | p | 16 octets of salt          the header, authenticated by every chunk
    chunk 0 | chunk 1 | … | last chunk                               64 KiB and a tag of 16 octets; the last shorter

A chunk's nonce is its number and a flag on the last one (the STREAM construction, Hoang et al. 2015): a chunk that was
changed, moved, omitted or truncated is detected before its content is used. The salt is random for each file, so no
key encrypts two.
"""

import hashlib
import os
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fleet.domain.errors import Invalid, Refused

MAGIC = b"FLTBAK1\n"
CHUNK = 65_536
TAG = 16
SALT = 16
HEADER = len(MAGIC) + 3 + SALT
COST = 17  # log2 of scrypt's N: 128 MiB and over a third of a second for each guess
COST_MAX = 18  # upper bound of what a file may demand: 256 MiB
_R, _P = 8, 1


class Sink(Protocol):
    """Destination of a stream."""

    def write(self, data: bytes, /) -> object: ...


class Source(Protocol):
    """Source of a stream; returns fewer bytes than requested only at its end."""

    def read(self, size: int, /) -> bytes: ...


def _key(passphrase: bytes, cost: int, salt: bytes) -> AESGCM:
    memory = 2 * 128 * _R * (1 << cost)
    return AESGCM(hashlib.scrypt(passphrase, salt=salt, n=1 << cost, r=_R, p=_P, maxmem=memory, dklen=32))


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11) + bytes([is_last])


class Sealing:
    """Encrypts what is written to it into `out`. Incomplete until `finish`."""

    def __init__(self, out: Sink, passphrase: bytes, *, cost: int = COST) -> None:
        salt = os.urandom(SALT)
        self._out = out
        self._header = MAGIC + bytes([cost, _R, _P]) + salt
        self._key = _key(passphrase, cost, salt)
        self._pending = bytearray()
        self._number = 0
        out.write(self._header)

    def write(self, data: bytes, /) -> None:
        self._pending += data
        while len(self._pending) > CHUNK:  # a full chunk may be the last one
            self._seal(bytes(self._pending[:CHUNK]), is_last=False)
            del self._pending[:CHUNK]

    def finish(self) -> None:
        self._seal(bytes(self._pending), is_last=True)

    def _seal(self, chunk: bytes, *, is_last: bool) -> None:
        self._out.write(self._key.encrypt(_nonce(self._number, is_last), chunk, self._header))
        self._number += 1


class Opening:
    """Decrypts what a Sealing has written to `file`, read from its beginning.

    Raises: Invalid (`not-a-backup`): no such header. Refused (`wrong-passphrase`): the first chunk fails to decrypt.
    """

    def __init__(self, file: BinaryIO, passphrase: bytes) -> None:
        self._file = file
        self._header = file.read(HEADER)
        cost, r, p = self._header[len(MAGIC) : len(MAGIC) + 3] if len(self._header) == HEADER else (0, 0, 0)
        if not self._header.startswith(MAGIC) or not 1 <= cost <= COST_MAX or (r, p) != (_R, _P):
            raise Invalid("not-a-backup", "It is not a backup of this program, or its beginning is damaged.")
        self._key = _key(passphrase, cost, self._header[-SALT:])
        self._number = 0
        self._next = file.read(CHUNK + TAG)
        self._open = b""
        self._ended = False
        self._advance()

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end. Raises: Invalid (`backup-damaged`)."""
        parts: list[bytes] = []
        while size:
            if not self._open:
                if self._ended:
                    break
                self._advance()
                continue
            part, self._open = self._open[:size], self._open[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _advance(self) -> None:
        chunk, self._next = self._next, self._file.read(CHUNK + TAG)
        self._ended = not self._next
        try:
            self._open = self._key.decrypt(_nonce(self._number, self._ended), chunk, self._header)
        except InvalidTag:
            if self._number == 0:
                message = "The passphrase is wrong, or the beginning of the backup is damaged."
                raise Refused("wrong-passphrase", message, "Give the passphrase that it was made with.") from None
            near = HEADER + self._number * (CHUNK + TAG)
            raise Invalid("backup-damaged", f"The backup is damaged or cut off near byte {near}.") from None
        self._number += 1


def is_sealed(beginning: bytes) -> bool:
    """Whether a file with this beginning (HEADER bytes suffice) needs a passphrase."""
    return beginning.startswith(MAGIC)
