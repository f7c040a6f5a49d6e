"""Domain values to table rows and back, the same for every engine: a table has a column for each field of its class.

Times are stored as microseconds since the epoch, lists and maps as JSON text.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

from fleet.config.timestamps import EPOCH
from fleet.domain.access import Operator
from fleet.domain.approval import ApprovalRequest
from fleet.domain.audit_log import TreeHead
from fleet.domain.audit_proof import ENTRY_TEXTS
from fleet.domain.changes import AuditEntry, AuditRow, Event
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, Station, Token
from fleet.domain.device import Device, DeviceId, Model, StateChange, Tags
from fleet.domain.distrust import Distrust
from fleet.domain.errors import Invalid
from fleet.domain.idempotency import Answer
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.manifest import ManifestEntry
from fleet.domain.merkle import HASH_SIZE
from fleet.domain.model_rules import ModelRules, rules_json, rules_of

T = TypeVar("T")

Row = tuple[Any, ...]
"""One row as a database driver gives it, in the order of the columns asked for."""

_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # RFC 5280, 4.1.2.2: at most 20 octets
_MICROSECOND = timedelta(microseconds=1)


def micros(at: datetime) -> int:
    """`at`, which must be aware, as microseconds since the epoch. Integer arithmetic: a float loses the last digits."""
    return (at - EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


# `json.dumps` with options makes an encoder for each call.
_encoded = json.JSONEncoder(separators=(",", ":")).encode
_encoded_sorted = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def json_text(value: object) -> str:
    return "[]" if value == () else _encoded(value)


def serial_octets(serial: str) -> bytes:
    """A serial number's hex digits as the number's octets, at least one. Raises: ValueError: not a serial number."""
    if not _SERIAL.fullmatch(serial):
        raise ValueError("A serial number is 1 to 40 hex digits in lower case.")
    number = int(serial, 16)
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8))


def serial_text(octets: bytes) -> str:
    return f"{int.from_bytes(octets):x}"


def _texts(stored: str) -> tuple[str, ...]:
    return () if stored == "[]" else tuple(json.loads(stored))


def _tags(stored: str) -> tuple[tuple[str, str], ...]:
    return () if stored == "[]" else tuple((key, value) for key, value in json.loads(stored))


class Codec(Struct, frozen=True):
    """How one kind of value is stored."""

    type: str
    """PostgreSQL's type of a parameter: text, bigint or bytea."""
    to_column: Callable[[Any], Any] | None = None
    """None: stored as it is."""
    from_column: Callable[[Any], Any] | None = None


def optional(codec: Codec) -> Codec:
    to_column, from_column = codec.to_column, codec.from_column
    return Codec(
        codec.type,
        to_column and (lambda value: None if value is None else to_column(value)),
        from_column and (lambda cell: None if cell is None else from_column(cell)),
    )


def _enum(values: type[StrEnum]) -> Codec:
    by_text = {member.value: member for member in values}
    return Codec("text", {member: text for text, member in by_text.items()}.__getitem__, by_text.__getitem__)


TEXT, NUMBER, BYTES = Codec("text"), Codec("bigint"), Codec("bytea")
BOOL = Codec("bigint", int, bool)
MOMENT = Codec("bigint", micros, moment)
SPAN = Codec("bigint", lambda span: span // _MICROSECOND, lambda count: timedelta(microseconds=count))
SERIAL = Codec("bytea", serial_octets, serial_text)
TEXTS = Codec("text", json_text, _texts)
TAGS = Codec("text", json_text, _tags)
RULES = Codec("text", lambda rules: json_text(rules_json(rules)), lambda cell: rules_of(json.loads(cell)))


class Table(Generic[T]):
    """A table and the class that its rows become.

    `columns` are in the order of the class's fields; `fields` names the fields that are not called as their columns.
    `of` keeps the last `cached` rows that it was given, and what they became.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., T],
        columns: Mapping[str, Codec],
        fields: Mapping[str, str] | None = None,
        cached: int = 0,
    ) -> None:
        self.name = name
        self.columns = tuple(columns)
        self.types = tuple(codec.type for codec in columns.values())
        self._make = make
        self.of: Callable[[Row], T] = lru_cache(maxsize=cached)(self._of) if cached else self._of
        self._cells = attrgetter(*((fields or {}).get(column, column) for column in columns))
        codecs = tuple(enumerate(columns.values()))
        self._to_columns = tuple((n, codec.to_column) for n, codec in codecs if codec.to_column is not None)
        self._from_columns = tuple((n, codec.from_column) for n, codec in codecs if codec.from_column is not None)

    def row(self, value: T) -> Row:
        """`value` as a row, in the order of `columns`."""
        cells = list(self._cells(value))
        for n, to_column in self._to_columns:
            cells[n] = to_column(cells[n])
        return tuple(cells)

    def _of(self, row: Row) -> T:
        cells = list(row)
        for n, from_column in self._from_columns:
            cells[n] = from_column(cells[n])
        return self._make(*cells)

    def listed(self, alias: str = "") -> str:
        """The columns for a SELECT or an INSERT, each with `alias.` in front when one is given."""
        return ", ".join(f"{alias}.{column}" if alias else column for column in self.columns)

    def marks(self) -> str:
        """A typed placeholder for each column."""
        return ", ".join(f"${number}::{type_}" for number, type_ in enumerate(self.types, 1))

    def select(self, rest: str) -> str:
        return f"SELECT {self.listed()} FROM {self.name} {rest}"

    def insert(self, ending: str = " ON CONFLICT DO NOTHING") -> str:
        return f"INSERT INTO {self.name} ({self.listed()}) VALUES ({self.marks()}){ending}"


_CODECS: dict[Any, Codec] = {
    str: TEXT,
    DeviceId: TEXT,
    int: NUMBER,
    bytes: BYTES,
    bool: BOOL,
    datetime: MOMENT,
    timedelta: SPAN,
    tuple[str, ...]: TEXTS,
    Tags: TAGS,
    ModelRules: RULES,
}


def _codec_of(kind: Any) -> Codec:
    """Raises: KeyError: no column holds values of this type."""
    if get_origin(kind) in (Union, UnionType):
        [value] = [each for each in get_args(kind) if each is not NoneType]
        return optional(_codec_of(value))
    return _enum(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else _CODECS[kind]


def table_of(
    name: str, kind: type[T], fields: Mapping[str, str] | None = None, cached: int = 0, **codecs: Codec
) -> Table[T]:
    """The table of `kind`: a column for each field, stored by the field's type unless `codecs` has one for it."""
    columns = {field: column for column, field in (fields or {}).items()}
    types = get_type_hints(kind)
    return Table(
        name,
        kind,
        {columns.get(field, field): codecs.get(field) or _codec_of(type_) for field, type_ in types.items()},
        fields,
        cached,
    )


# Every enrollment and every connection reads one of a few models.
MODEL = table_of("model", Model, {"lifetime": "certificate_lifetime"}, cached=1024)
DEVICE = table_of("device", Device)
STATE_CHANGE = table_of("state_change", StateChange)
CREDENTIAL = table_of("credential", Credential, {"earned_by": "grant"}, serial=SERIAL)
TOKEN = table_of("token", Token)
STATION = table_of("station", Station)
OPERATOR = table_of("operator", Operator)
ANSWER = table_of("answer", Answer)
LEASE = table_of("lease", Lease)
REQUEST = table_of("approval_request", ApprovalRequest)
MANIFEST = table_of("manifest", ManifestEntry)
CLAIM = table_of("claim", Claim)
ANCHOR = table_of("anchor", Anchor)
IDEVID = table_of("idevid", IdevidBinding)
DISTRUST = table_of(
    "distrust", Distrust, {"authority": "issuer_key_id"}, cached=1024
)  # every connection is judged by them
EVENT = table_of("event", Event)
TAG = Table("device_tag", lambda *cells: cells, {"key": TEXT, "value": TEXT, "device_id": TEXT})


def tag_rows(device: Device) -> list[Row]:
    """(key, value, device id) of each tag and, under the key "", of each group."""
    return [(key, value, device.id) for key, value in (*device.tags, *(("", group) for group in device.groups))]


def _detail_text(detail: dict[str, str]) -> str:
    return _encoded_sorted(detail) if detail else "{}"


def _detail_of(text: str) -> object:
    """Raises: ValueError: the same members may be written in another way, but these octets were not written here."""
    detail = json.loads(text)
    if _detail_text(detail) != text:
        raise ValueError("the detail is not as it was written")
    return detail


def _audit_row(seq: int, *cells: Any) -> AuditRow:
    at, actor, action, subject, outcome, address, detail, leaf = cells
    if not isinstance(detail, dict) or not isinstance(leaf, bytes):
        raise TypeError("a column holds a value of another type")
    return AuditRow(seq, AuditEntry(at, actor, action, subject, outcome, address, detail), leaf)


AUDIT = Table(
    "audit",
    _audit_row,
    {
        "seq": NUMBER,
        "at": MOMENT,
        **dict.fromkeys(ENTRY_TEXTS, TEXT),
        "detail": Codec("text", _detail_text, _detail_of),
        "leaf": BYTES,
    },
    {name: f"entry.{name}" for name in ("at", *ENTRY_TEXTS, "detail")},
)
HEAD = table_of("audit_head", TreeHead)


def audit_of(row: Row) -> AuditRow:
    """Raises: Invalid (`audit-changed`): a column holds what no entry could have held."""
    try:
        return AUDIT.of(row)
    except (ValueError, TypeError, OverflowError) as error:
        raise Invalid("audit-changed", f"The audit is broken: row {row[0]} has been changed.") from error


def head_of(row: Row) -> TreeHead:
    """Raises: Invalid (`audit-head-changed`): a column holds what no head could have held."""
    try:
        head = HEAD.of(row)
    except (TypeError, OverflowError):
        head = None
    # What is signed is the time to the millisecond: more was not written.
    is_sound = head is not None and head.size >= 1 and len(head.root) == HASH_SIZE and head.at >= EPOCH
    if head is None or not is_sound or head.at.microsecond % 1000:
        raise Invalid("audit-head-changed", f"The audit is broken: the head of {row[0]} rows has been changed.")
    return head
