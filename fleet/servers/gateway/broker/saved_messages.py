"""What our own mosquitto has saved: the retained messages in its database, and who has published them.

The format is that of mosquitto 2 (persist.h, version 6 of the database): chunks of a type, a length and a body. Those
of messages come first; one for each retained message names its message. Numbers of the machine's own byte order are
told from the others below.
"""

import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct, error
from typing import NamedTuple

_MAGIC = b"\x00\xb5\x00mosquitto db"
_VERSION = Struct(">II")  # a checksum, which is 0, and the version
_VERSION_KNOWN = 6
_CHUNK = Struct(">II")  # type, length
_MESSAGE, _RETAINED = 2, 4
_ID = Struct("=Q")  # of a message, in the machine's own byte order
_SIZES = Struct(">IHHHH")  # of payload, and topic behind: payload, source mid, source id, source user name, topic
_SIZES_AT = 16  # behind the id and the time at which the message expires
_HEAD_SIZE = 32


class Retained(NamedTuple):
    client_id: str
    """Of its publisher; that of a will, too."""
    username: str
    topic: str
    size: int
    """Bytes of the payload."""


def retained_messages(database: Path) -> Iterator[Retained]:
    """Those that it has saved; none when there is no database, or one of another format. Raises: OSError."""
    with (
        suppress(FileNotFoundError, error, UnicodeDecodeError, ValueError),
        database.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        yield from _retained(data)


def _retained(data: mmap.mmap) -> Iterator[Retained]:
    pos = len(_MAGIC)
    if data[:pos] != _MAGIC or _VERSION.unpack_from(data, pos)[1] != _VERSION_KNOWN:
        return
    pos += _VERSION.size
    at: dict[int, int] = {}  # message -> where its body begins
    while pos < len(data):
        kind, length = _CHUNK.unpack_from(data, pos)
        body = pos + _CHUNK.size
        pos = body + length
        if kind == _MESSAGE:
            at[_ID.unpack_from(data, body)[0]] = body
        elif kind == _RETAINED and (found := at.get(_ID.unpack_from(data, body)[0])) is not None:
            yield _message(data, found)


def _message(data: mmap.mmap, body: int) -> Retained:
    size, _, *sizes = _SIZES.unpack_from(data, body + _SIZES_AT)
    texts, pos = [], body + _HEAD_SIZE
    for length in sizes:
        texts.append(data[pos : pos + length].decode())
        pos += length
    return Retained(texts[0], texts[1], texts[2], size)
