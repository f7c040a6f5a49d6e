"""Messages of the serial protocol: CBOR bodies as frozen values, checked field by field both ways.

A message is the CBOR array `[version, kind, session, step, fields]`; `fields` is a map with the keys 1, 2, 3... in the
order of the class below. The encoding is deterministic (RFC 8949, 4.2.1) and a reader accepts nothing else: no tags, no
indefinite lengths, no unknown, missing or repeated field. The first four items are the same in all versions.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, dataclass_transform, get_args

import cbor2

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.serial.field_types import Bool, Bytes, FieldType, ListOf, OneOf, Text, Uint
from fleet.wire.serial.frames import PAYLOAD_SIZE_MAX

M = TypeVar("M", bound="_Message")

VERSION = 1
SESSION_SIZE = 8
STEP_MAX = 0xFFFF
CHALLENGE_SIZE = 32
CHUNK_SIZE_MIN = 64
CHUNK_SIZE_MAX = 896  # a message of 1024 less its header, with slack for fields to come
CSR_SIZE_MAX = 4096
BLOB_SIZE_MAX = 8192  # five certificates of RSA-4096, or two of ML-DSA-65
CERTIFICATES_MAX = 8
REASON_SIZE_MAX = 160
_DEPTH_MAX = 4  # message, fields, list; one to spare
_KIND_MAX = 255

_NAME = Text(64, 1)
_SHA256 = Bytes(32, 32)
_BLOB = Uint(2, 1)

BLANK, PENDING, PROVISIONED = "blank", "pending", "provisioned"
"""States of a board: no key; a key without an active certificate; an active identity."""


class Blob(enum.IntEnum):
    """Data written to the board in chunks: concatenated DER certificates."""

    CHAIN = 1
    """The device's certificate, then its issuers."""
    ANCHORS = 2
    """The trust anchors for the device's servers."""


class FailureCode(enum.IntEnum):
    NO_SESSION = 1
    """The board has no such session: it has restarted. Begin again with Hello."""
    UNSUPPORTED = 2
    MALFORMED = 3
    OUT_OF_ORDER = 4
    REFUSED = 5
    ALREADY_PROVISIONED = 6
    """It has another identity, and `replace` was false."""
    KEY_MISMATCH = 7
    """The certificate is not for the board's key."""
    BAD_CERTIFICATE = 8
    STORAGE = 9
    TOO_LARGE = 10
    BAD_PROOF = 11
    WRONG_DEVICE = 12
    """The board is not the expected one."""
    STOPPED = 13
    """The operator or the station stopped the run."""


class _Message:
    __slots__ = ()
    KIND: ClassVar[int]
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]]


@dataclass_transform(frozen_default=True)
def _message(kind: int, *field_types: FieldType) -> Callable[[type[M]], type[M]]:
    """A message of `kind`, frozen, with a type for each of its fields in order."""

    def made(cls: type[M]) -> type[M]:
        cls.KIND, cls.FIELD_TYPES = kind, field_types
        return dataclass(frozen=True, slots=True)(cls)

    return made


@_message(1, ListOf(Uint(255, 1), 8), Text(64))
class Hello(_Message):
    versions: tuple[int, ...]
    station: str


@_message(2, _NAME, Text(16, 1), Bool())
class MakeKey(_Message):
    """Generate a key, or reuse the one for this device id, and prepare a CSR."""

    device_id: str
    key_type: str
    replace: bool
    """Whether another identity that the board holds may be replaced."""


@_message(3, Uint(CSR_SIZE_MAX))
class ReadCsr(_Message):
    offset: int


@_message(4, _BLOB, Uint(BLOB_SIZE_MAX, 1), _SHA256)
class WriteBegin(_Message):
    blob: int
    size: int
    sha256: bytes


@_message(5, _BLOB, Uint(BLOB_SIZE_MAX), Bytes(CHUNK_SIZE_MAX, 1))
class WriteChunk(_Message):
    blob: int
    offset: int
    data: bytes


@_message(6, Text(255, 1), Text(253, 1), Uint(65535, 1))
class Install(_Message):
    """Check the written blobs and store them beside the active identity."""

    est_url: str
    mqtt_host: str
    mqtt_port: int


@_message(7, Bytes(CHALLENGE_SIZE, CHALLENGE_SIZE))
class Prove(_Message):
    challenge: bytes


@_message(8)
class Finish(_Message):
    """Make the stored identity the active one."""


@_message(9, Uint(255, 1), Text(REASON_SIZE_MAX))
class Abort(_Message):
    """The station gives up. Not answered."""

    code: int
    text: str


@_message(
    65,
    Uint(255, 1),
    _NAME,
    _NAME,
    Text(64),
    ListOf(Text(16, 1), 8),
    Uint(CHUNK_SIZE_MAX, CHUNK_SIZE_MIN),
    OneOf((BLANK, PENDING, PROVISIONED)),
    Text(64),
)
class DeviceInfo(_Message):
    """Answers Hello."""

    version: int
    """The version chosen of those that Hello offered."""
    hardware_serial: str
    model: str
    firmware: str
    key_types: tuple[str, ...]
    chunk_size_max: int
    """Octets of data that one ReadCsr answer or WriteChunk may carry."""
    state: str
    device_id: str
    """"" if it is blank."""


@_message(66, Uint(CSR_SIZE_MAX, 1), _SHA256)
class CsrReady(_Message):
    size: int
    sha256: bytes


@_message(67, Uint(CSR_SIZE_MAX), Bytes(CHUNK_SIZE_MAX, 1))
class CsrChunk(_Message):
    offset: int
    data: bytes


@_message(68, _BLOB)
class WriteReady(_Message):
    blob: int


@_message(69, _BLOB, Uint(BLOB_SIZE_MAX, 1))
class ChunkStored(_Message):
    blob: int
    received: int
    """Octets of this blob received so far."""


@_message(70, _SHA256)
class Installed(_Message):
    fingerprint: bytes
    """SHA-256 of the stored certificate."""


@_message(71, Bytes(512, 1))
class Proof(_Message):
    signature: bytes


@_message(72, _NAME, _SHA256)
class Finished(_Message):
    device_id: str
    fingerprint: bytes


@_message(127, Uint(255, 1), Text(REASON_SIZE_MAX))
class Failed(_Message):
    """The request failed. It ends the session; a repeated request gets the same answer."""

    code: int
    text: str


Request = Hello | MakeKey | ReadCsr | WriteBegin | WriteChunk | Install | Prove | Finish | Abort
Answer = DeviceInfo | CsrReady | CsrChunk | WriteReady | ChunkStored | Installed | Proof | Finished | Failed
Body = Request | Answer

REQUESTS: tuple[type[Request], ...] = get_args(Request)
ANSWERS: tuple[type[Answer], ...] = get_args(Answer)
BODIES: dict[int, type[Body]] = {body.KIND: body for body in (*REQUESTS, *ANSWERS)}
"""All messages by kind. Any other kind is refused."""


@dataclass(frozen=True, slots=True)
class Message:
    session: bytes
    """SESSION_SIZE random octets, chosen by the station."""
    step: int
    """Counts the requests of a session from 0; an answer repeats its request's."""
    body: Body


@dataclass(frozen=True, slots=True)
class Header:
    """The part that is the same in all versions."""

    version: int
    kind: int
    session: bytes
    step: int


_HEADER_TYPES: tuple[tuple[str, FieldType], ...] = (
    ("The version", Uint(255)),
    ("The kind", Uint(_KIND_MAX)),
    ("The session", Bytes(SESSION_SIZE, SESSION_SIZE)),
    ("The step", Uint(STEP_MAX)),
)


def encode(message: Message) -> bytes:
    """`message` as a frame's payload. Raises: ValueError: a field is invalid, the caller's mistake, not the peer's."""
    body = message.body
    names = [field.name for field in dataclasses.fields(body)]
    header = (VERSION, body.KIND, message.session, message.step)
    try:
        items = [field_type.check(value, what) for value, (what, field_type) in zip(header, _HEADER_TYPES, strict=True)]
        fields = {
            number: field_type.check(getattr(body, name), f"{type(body).__name__}.{name}")
            for number, (name, field_type) in enumerate(zip(names, body.FIELD_TYPES, strict=True), start=1)
        }
    except WireError as error:
        raise ValueError(str(error)) from None
    return _dumps([*items, fields])


def decode(payload: bytes) -> Message:
    """The message in a frame's payload. Raises: TooLarge, Malformed; Unsupported for another version or kind."""
    items = _items(payload)
    header = _header(items)
    if header.version != VERSION:
        raise Unsupported(f"Version {header.version} of the protocol is not supported, only {VERSION}.")
    if header.kind not in BODIES:
        raise Unsupported(f"There is no message of kind {header.kind}.")
    # RFC 8949, 4.2.1: one encoding for each value. This also refuses bytes after the end.
    if _dumps(items) != payload:
        raise Malformed("The message is not in deterministic encoding.")
    if len(items) != 5:
        raise Malformed("A message has five items.")
    return Message(header.session, header.step, _body(BODIES[header.kind], items[4]))


def read_header(payload: bytes) -> Header:
    """Version, kind, session and step of a message of any version, to answer it. Raises: TooLarge, Malformed."""
    return _header(_items(payload))


def _body(kind: type[Body], fields: object) -> Body:
    names = [field.name for field in dataclasses.fields(kind)]
    # By type too: CBOR's true and 1.0 equal the number one in Python.
    if (
        not isinstance(fields, dict)
        or any(type(key) is not int for key in fields)
        or list(fields) != list(range(1, len(names) + 1))
    ):
        raise Malformed(f"{kind.__name__} has the fields 1 to {len(names)} and no other.")
    values: dict[str, Any] = {
        name: field_type.check(value, f"{kind.__name__}.{name}")
        for name, value, field_type in zip(names, fields.values(), kind.FIELD_TYPES, strict=True)
    }
    return kind(**values)


def _header(items: list[object]) -> Header:
    if len(items) < len(_HEADER_TYPES):
        raise Malformed("A message begins with version, kind, session and step.")
    values: list[Any] = [kind.check(item, what) for item, (what, kind) in zip(items, _HEADER_TYPES, strict=False)]
    return Header(*values)


class _NoTags(Mapping[int, Callable[[object, bool], object]]):
    """Decoders for CBOR tags that refuse each: tags build dates, bignums and patterns; the protocol uses none."""

    def __getitem__(self, tag: int) -> Callable[[object, bool], object]:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 1


def _refuse_tag(value: object, immutable: bool) -> object:
    raise Malformed("A message holds no CBOR tags.")


def _items(payload: bytes) -> list[object]:
    if len(payload) > PAYLOAD_SIZE_MAX:
        raise TooLarge(f"A message is at most {PAYLOAD_SIZE_MAX} octets.")
    try:
        items = cbor2.loads(
            payload,
            semantic_decoders=_NoTags(),
            max_depth=_DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
    except cbor2.CBORError:
        raise Malformed("The message is not CBOR, or holds tags, indefinite lengths or repeated keys.") from None
    if not isinstance(items, list):
        raise Malformed("A message is an array.")
    return items


def _dumps(items: list[object]) -> bytes:
    return cbor2.dumps(items, canonical=True)
