"""What our own mosquitto has saved in its database: retained messages, and who has published them; and the queues.

The format is that of mosquitto 2 (persist.h, version 6 of the database): chunks of a type, a length and a body. Those
of messages come first; one for each retained message, and for each in a queue, names its message. Numbers of the
machine's own byte order are told from the others below.
"""

import mmap
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct, error
from typing import NamedTuple

_MAGIC = b"\x00\xb5\x00mosquitto db"
_VERSION = Struct(">II")  # a checksum, which is 0, and the version
_VERSION_KNOWN = 6
_CHUNK = Struct(">II")  # type, length
_MESSAGE, _QUEUED, _RETAINED = 2, 3, 4
_MESSAGE_BYTES, _QUEUED_BYTES = 512, 128  # of the broker's memory besides its payload: for a message, in each queue
_CLIENT_AT = 16  # in a chunk of a queue: the client id, whose size stands before
_CLIENT_SIZE = Struct(">H")
_CLIENT_SIZE_AT = 10
_PAYLOAD_SIZE = Struct(">I")
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


def queues(database: Path) -> dict[str, int]:
    """Bytes of the broker's memory for each client's queue, by client id: a message in several of them, or retained,
    too, counts for each in part. Raises: OSError.
    """
    by_client = Counter[str]()
    with (
        suppress(FileNotFoundError, error, UnicodeDecodeError, ValueError),
        database.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        sizes, times = dict[int, int](), Counter[int]()
        for kind, body in _chunks(data):
            number = _ID.unpack_from(data, body)[0]
            if kind == _MESSAGE:
                sizes[number] = _PAYLOAD_SIZE.unpack_from(data, body + _SIZES_AT)[0] + _MESSAGE_BYTES
            elif kind in (_QUEUED, _RETAINED):
                times[number] += 1
        for kind, body in _chunks(data):
            if kind == _QUEUED:
                number, size = _ID.unpack_from(data, body)[0], _CLIENT_SIZE.unpack_from(data, body + _CLIENT_SIZE_AT)[0]
                client_id = data[body + _CLIENT_AT : body + _CLIENT_AT + size].decode()
                by_client[client_id] += sizes.get(number, 0) // times[number] + _QUEUED_BYTES
    return by_client


def _chunks(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Type of each chunk, and where its body begins."""
    pos = len(_MAGIC)
    if data[:pos] != _MAGIC or _VERSION.unpack_from(data, pos)[1] != _VERSION_KNOWN:
        return
    pos += _VERSION.size
    while pos < len(data):
        kind, length = _CHUNK.unpack_from(data, pos)
        yield kind, pos + _CHUNK.size
        pos += _CHUNK.size + length


def _retained(data: mmap.mmap) -> Iterator[Retained]:
    at: dict[int, int] = {}  # message -> where its body begins
    for kind, body in _chunks(data):
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
