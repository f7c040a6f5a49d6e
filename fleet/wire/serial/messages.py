"""The messages of the serial protocol: CBOR bodies as frozen values, checked field by field both ways.

A message is the CBOR array `[version, kind, session, step, fields]`; `fields` is a map with the keys 1, 2, 3... in the
order of the class below. The encoding is deterministic (RFC 8949, 4.2.1) and a reader accepts nothing else: no tags, no
indefinite lengths, no unknown, missing or repeated field. The first four items keep their place in every version.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cbor2

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.serial.frames import PAYLOAD_SIZE_MAX
from fleet.wire.serial.shapes import Bool, Bytes, Many, OneOf, Shape, Text, Uint

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
"""What a board holds: nothing; a key without an active certificate; an active identity."""


class Blob(enum.IntEnum):
    """What is written to the board in chunks: DER certificates one after the other."""

    CHAIN = 1
    """The device's certificate first, then the issuing ones."""
    ANCHORS = 2
    """The trust anchors by which the device will know its servers."""


class FailureCode(enum.IntEnum):
    NO_SESSION = 1
    """The board knows no such session: it has restarted. Begin again with Hello."""
    UNSUPPORTED = 2
    MALFORMED = 3
    OUT_OF_ORDER = 4
    REFUSED = 5
    ALREADY_PROVISIONED = 6
    """It holds another identity, and the station did not ask to replace it."""
    KEY_MISMATCH = 7
    """The certificate is not for the board's key."""
    BAD_CERTIFICATE = 8
    STORAGE = 9
    TOO_LARGE = 10
    BAD_PROOF = 11
    WRONG_DEVICE = 12
    """The board is not the one it was said to be."""
    STOPPED = 13
    """The person or program at the station gave up."""


@dataclass(frozen=True, slots=True)
class Hello:
    KIND: ClassVar[int] = 1
    SHAPES: ClassVar[tuple[Shape, ...]] = (Many(Uint(255, 1), 8), Text(64))
    versions: tuple[int, ...]
    station: str


@dataclass(frozen=True, slots=True)
class MakeKey:
    """Make a key, or take the one that is there for this very device id, and prepare a CSR."""

    KIND: ClassVar[int] = 2
    SHAPES: ClassVar[tuple[Shape, ...]] = (_NAME, Text(16, 1), Bool())
    device_id: str
    key_type: str
    replace: bool
    """Leave to give up another identity that the board holds."""


@dataclass(frozen=True, slots=True)
class ReadCsr:
    KIND: ClassVar[int] = 3
    SHAPES: ClassVar[tuple[Shape, ...]] = (Uint(CSR_SIZE_MAX),)
    offset: int


@dataclass(frozen=True, slots=True)
class WriteBegin:
    KIND: ClassVar[int] = 4
    SHAPES: ClassVar[tuple[Shape, ...]] = (_BLOB, Uint(BLOB_SIZE_MAX, 1), _SHA256)
    blob: int
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class WriteChunk:
    KIND: ClassVar[int] = 5
    SHAPES: ClassVar[tuple[Shape, ...]] = (_BLOB, Uint(BLOB_SIZE_MAX), Bytes(CHUNK_SIZE_MAX, 1))
    blob: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Install:
    """Check what was written and store it beside whatever is active now."""

    KIND: ClassVar[int] = 6
    SHAPES: ClassVar[tuple[Shape, ...]] = (Text(255, 1), Text(253, 1), Uint(65535, 1))
    est_url: str
    mqtt_host: str
    mqtt_port: int


@dataclass(frozen=True, slots=True)
class Prove:
    KIND: ClassVar[int] = 7
    SHAPES: ClassVar[tuple[Shape, ...]] = (Bytes(CHALLENGE_SIZE, CHALLENGE_SIZE),)
    challenge: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """Make the stored identity the active one."""

    KIND: ClassVar[int] = 8
    SHAPES: ClassVar[tuple[Shape, ...]] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """The station gives up. It is not answered."""

    KIND: ClassVar[int] = 9
    SHAPES: ClassVar[tuple[Shape, ...]] = (Uint(255, 1), Text(REASON_SIZE_MAX))
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Answers Hello."""

    KIND: ClassVar[int] = 65
    SHAPES: ClassVar[tuple[Shape, ...]] = (
        Uint(255, 1),
        _NAME,
        _NAME,
        Text(64),
        Many(Text(16, 1), 8),
        Uint(CHUNK_SIZE_MAX, CHUNK_SIZE_MIN),
        OneOf((BLANK, PENDING, PROVISIONED)),
        Text(64),
    )
    version: int
    """The one it chose of those that Hello offered."""
    hardware_serial: str
    model: str
    firmware: str
    key_types: tuple[str, ...]
    chunk_size_max: int
    """Octets of data that one ReadCsr answer or WriteChunk may carry."""
    state: str
    device_id: str
    """"" when it is blank."""


@dataclass(frozen=True, slots=True)
class CsrReady:
    KIND: ClassVar[int] = 66
    SHAPES: ClassVar[tuple[Shape, ...]] = (Uint(CSR_SIZE_MAX, 1), _SHA256)
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class CsrChunk:
    KIND: ClassVar[int] = 67
    SHAPES: ClassVar[tuple[Shape, ...]] = (Uint(CSR_SIZE_MAX), Bytes(CHUNK_SIZE_MAX, 1))
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WriteReady:
    KIND: ClassVar[int] = 68
    SHAPES: ClassVar[tuple[Shape, ...]] = (_BLOB,)
    blob: int


@dataclass(frozen=True, slots=True)
class ChunkStored:
    KIND: ClassVar[int] = 69
    SHAPES: ClassVar[tuple[Shape, ...]] = (_BLOB, Uint(BLOB_SIZE_MAX, 1))
    blob: int
    received: int
    """Octets of this blob that the board holds now."""


@dataclass(frozen=True, slots=True)
class Installed:
    KIND: ClassVar[int] = 70
    SHAPES: ClassVar[tuple[Shape, ...]] = (_SHA256,)
    fingerprint: bytes
    """SHA-256 of the certificate it has stored."""


@dataclass(frozen=True, slots=True)
class Proof:
    KIND: ClassVar[int] = 71
    SHAPES: ClassVar[tuple[Shape, ...]] = (Bytes(512, 1),)
    signature: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    KIND: ClassVar[int] = 72
    SHAPES: ClassVar[tuple[Shape, ...]] = (_NAME, _SHA256)
    device_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The board refuses or could not. It ends the session, and the same request gets the same answer again."""

    KIND: ClassVar[int] = 127
    SHAPES: ClassVar[tuple[Shape, ...]] = (Uint(255, 1), Text(REASON_SIZE_MAX))
    code: int
    text: str


Request = Hello | MakeKey | ReadCsr | WriteBegin | WriteChunk | Install | Prove | Finish | Abort
Answer = Facts | CsrReady | CsrChunk | WriteReady | ChunkStored | Installed | Proof | Finished | Failed
Body = Request | Answer

REQUESTS: tuple[type[Request], ...] = (Hello, MakeKey, ReadCsr, WriteBegin, WriteChunk, Install, Prove, Finish, Abort)
ANSWERS: tuple[type[Answer], ...] = (
    Facts,
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
"""Every message there is. A kind that is not here is refused."""


@dataclass(frozen=True, slots=True)
class Message:
    session: bytes
    """SESSION_SIZE random octets, chosen by the station."""
    step: int
    """Counts the requests of a session from 0; an answer repeats its request's."""
    body: Body


@dataclass(frozen=True, slots=True)
class Header:
    """The part that keeps its place in every version."""

    version: int
    kind: int
    session: bytes
    step: int


_HEADER_SHAPES: tuple[tuple[str, Shape], ...] = (
    ("The version", Uint(255)),
    ("The kind", Uint(_KIND_MAX)),
    ("The session", Bytes(SESSION_SIZE, SESSION_SIZE)),
    ("The step", Uint(STEP_MAX)),
)


def encode(message: Message) -> bytes:
    """`message` as the payload of a frame.

    Raises: ValueError when a field breaks its own shape: that is our mistake, not the peer's.
    """
    body = message.body
    names = [field.name for field in dataclasses.fields(body)]
    header = (VERSION, body.KIND, message.session, message.step)
    try:
        items = [shape.check(value, what) for value, (what, shape) in zip(header, _HEADER_SHAPES, strict=True)]
        fields = {
            number: shape.check(getattr(body, name), f"{type(body).__name__}.{name}")
            for number, (name, shape) in enumerate(zip(names, body.SHAPES, strict=True), start=1)
        }
    except WireError as error:
        raise ValueError(str(error)) from None
    return _dumps([*items, fields])


def decode(payload: bytes) -> Message:
    """The message in a frame's payload.

    Raises: TooLarge, Malformed; Unsupported for a version or a kind that we do not speak.
    """
    items = _items(payload)
    header = _header(items)
    if header.version != VERSION:
        raise Unsupported(f"Version {header.version} of the protocol is not spoken here, only {VERSION}.")
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
        name: shape.check(value, f"{kind.__name__}.{name}")
        for name, value, shape in zip(names, fields.values(), kind.SHAPES, strict=True)
    }
    return kind(**values)


def _header(items: list[object]) -> Header:
    if len(items) < len(_HEADER_SHAPES):
        raise Malformed("A message begins with version, kind, session and step.")
    values: list[Any] = [shape.check(item, what) for item, (what, shape) in zip(items, _HEADER_SHAPES, strict=False)]
    return Header(*values)


class _NoTags(Mapping[int, Callable[[object, bool], object]]):
    """A decoder for every CBOR tag that refuses it: tags build dates, bignums and patterns, and we use none."""

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
