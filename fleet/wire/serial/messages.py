"""Messages of the serial protocol: CBOR bodies as frozen values, checked field by field both ways.

A message is the CBOR array `[version, kind, session, step, fields]`; `fields` is a map with the keys 1, 2, 3... in the
order of the class below. The encoding is deterministic (RFC 8949, 4.2.1) and a reader accepts nothing else: no tags, no
indefinite lengths, no unknown, missing or repeated field. The first four items are the same in all versions.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cbor2

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.serial.field_types import Bool, Bytes, FieldType, ListOf, OneOf, Text, Uint
from fleet.wire.serial.frames import PAYLOAD_SIZE_MAX

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


@dataclass(frozen=True, slots=True)
class Hello:
    KIND: ClassVar[int] = 1
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (ListOf(Uint(255, 1), 8), Text(64))
    versions: tuple[int, ...]
    station: str


@dataclass(frozen=True, slots=True)
class MakeKey:
    """Generate a key, or reuse the one for this device id, and prepare a CSR."""

    KIND: ClassVar[int] = 2
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_NAME, Text(16, 1), Bool())
    device_id: str
    key_type: str
    replace: bool
    """Whether another identity that the board holds may be replaced."""


@dataclass(frozen=True, slots=True)
class ReadCsr:
    KIND: ClassVar[int] = 3
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Uint(CSR_SIZE_MAX),)
    offset: int


@dataclass(frozen=True, slots=True)
class WriteBegin:
    KIND: ClassVar[int] = 4
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_BLOB, Uint(BLOB_SIZE_MAX, 1), _SHA256)
    blob: int
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class WriteChunk:
    KIND: ClassVar[int] = 5
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_BLOB, Uint(BLOB_SIZE_MAX), Bytes(CHUNK_SIZE_MAX, 1))
    blob: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Install:
    """Check the written blobs and store them beside the active identity."""

    KIND: ClassVar[int] = 6
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Text(255, 1), Text(253, 1), Uint(65535, 1))
    est_url: str
    mqtt_host: str
    mqtt_port: int


@dataclass(frozen=True, slots=True)
class Prove:
    KIND: ClassVar[int] = 7
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Bytes(CHALLENGE_SIZE, CHALLENGE_SIZE),)
    challenge: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """Make the stored identity the active one."""

    KIND: ClassVar[int] = 8
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """The station gives up. Not answered."""

    KIND: ClassVar[int] = 9
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Uint(255, 1), Text(REASON_SIZE_MAX))
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Answers Hello."""

    KIND: ClassVar[int] = 65
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (
        Uint(255, 1),
        _NAME,
        _NAME,
        Text(64),
        ListOf(Text(16, 1), 8),
        Uint(CHUNK_SIZE_MAX, CHUNK_SIZE_MIN),
        OneOf((BLANK, PENDING, PROVISIONED)),
        Text(64),
    )
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


@dataclass(frozen=True, slots=True)
class CsrReady:
    KIND: ClassVar[int] = 66
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Uint(CSR_SIZE_MAX, 1), _SHA256)
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class CsrChunk:
    KIND: ClassVar[int] = 67
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Uint(CSR_SIZE_MAX), Bytes(CHUNK_SIZE_MAX, 1))
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WriteReady:
    KIND: ClassVar[int] = 68
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_BLOB,)
    blob: int


@dataclass(frozen=True, slots=True)
class ChunkStored:
    KIND: ClassVar[int] = 69
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_BLOB, Uint(BLOB_SIZE_MAX, 1))
    blob: int
    received: int
    """Octets of this blob received so far."""


@dataclass(frozen=True, slots=True)
class Installed:
    KIND: ClassVar[int] = 70
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_SHA256,)
    fingerprint: bytes
    """SHA-256 of the stored certificate."""


@dataclass(frozen=True, slots=True)
class Proof:
    KIND: ClassVar[int] = 71
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Bytes(512, 1),)
    signature: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    KIND: ClassVar[int] = 72
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (_NAME, _SHA256)
    device_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed. It ends the session; a repeated request gets the same answer."""

    KIND: ClassVar[int] = 127
    FIELD_TYPES: ClassVar[tuple[FieldType, ...]] = (Uint(255, 1), Text(REASON_SIZE_MAX))
    code: int
    text: str


Request = Hello | MakeKey | ReadCsr | WriteBegin | WriteChunk | Install | Prove | Finish | Abort
Answer = DeviceInfo | CsrReady | CsrChunk | WriteReady | ChunkStored | Installed | Proof | Finished | Failed
Body = Request | Answer

REQUESTS: tuple[type[Request], ...] = (Hello, MakeKey, ReadCsr, WriteBegin, WriteChunk, Install, Prove, Finish, Abort)
ANSWERS: tuple[type[Answer], ...] = (
    DeviceInfo,
    CsrReady,
    CsrChunk,
    WriteReady,
    ChunkStored,
    Installed,
    Proof,
    Finished,
    Failed,
)
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
    """`message` as the payload of a frame.

    Raises: ValueError if a field is invalid: the caller's mistake, not the peer's.
    """
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
    """The message in a frame's payload.

    Raises: TooLarge, Malformed; Unsupported for another version or kind.
    """
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
    """Version, kind, session and step of a message of any version, so that it can be answered.

    Raises: TooLarge, Malformed.
    """
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
