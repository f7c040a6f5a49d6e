"""The audit: its rows, and what it takes to verify them without trusting the server (RFC 9162)."""

from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from fleet.domain import audit_log, changes
from fleet.domain.audit_log import NODE_LEVELS
from fleet.domain.audit_proof import head_value
from fleet.domain.members import about, pattern
from fleet.servers.admin.records.base import (
    SEQUENCE_MAX,
    Page,
    Paging,
    Record,
    Sequence,
    Serial,
    Sha256,
    Time,
    TimeText,
)

LEVELS = (0, *NODE_LEVELS)
HASHES_MAX = 1024  # a page of 64 KiB of hex


class AuditRow(Record):
    """Who did what, and with which outcome."""

    seq: Sequence
    at: Time
    actor: str
    action: str
    subject: str
    outcome: str
    address: str
    detail: dict[str, str]
    leaf: Annotated[Sha256, about("Leaf hash of the row in the audit's tree.")]

    @classmethod
    def shown(cls, row: changes.AuditRow) -> Self:
        return cls.of(row.entry, seq=row.seq, leaf=row.leaf.hex())


class AuditPage(Page[AuditRow]):
    last: Annotated[Sequence, about("Sequence number of the newest row.")]


class AuditQuery(Paging):
    """Which rows."""

    after: Annotated[Sequence | None, about("Rows after this sequence number.")] = None


class HeadQuery(Paging):
    """Which heads."""

    after: Annotated[Sequence | None, about("Heads of more rows than these.")] = None


class TreeHead(Record):
    """A signed head of the audit's tree (RFC 9162)."""

    size: Annotated[Sequence, about("Number of rows that it covers.")]
    root: Sha256
    at: TimeText
    key_id: Sha256
    signature: Annotated[str, pattern(r"^([0-9a-f]{2})+\Z")]

    @classmethod
    def shown(cls, head: audit_log.TreeHead) -> Self:
        return msgspec.convert(head_value(head), cls)


class Frontier(Record):
    """Hashes of the perfect subtrees of the first `size` rows."""

    size: Sequence
    hashes: Annotated[str, pattern(r"^([0-9a-f]{64})*\Z")]


class Sealed(Record):
    """The newest head, and the hashes of the perfect subtrees of its rows; null before the first."""

    head: TreeHead | None
    frontier: Frontier | None


class HashesQuery(Record):
    """Which hashes: of rows, or of perfect subtrees of 2^level rows."""

    level: Annotated[int, Meta(extra_json_schema={"enum": list(LEVELS)})] = 0
    first: Annotated[Sequence, about("Number of the first one, from 0.")] = 0
    count: Annotated[int, Meta(ge=1, le=HASHES_MAX)] = HASHES_MAX

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"Expected one of {', '.join(map(str, LEVELS))} in `level`")


class Hashes(Record):
    """Hashes of the audit's tree."""

    hashes: list[Sha256]


class ProofQuery(Record):
    """Which row: its number, or the serial number of the certificate whose issue it records."""

    seq: Annotated[int, Meta(ge=1, le=SEQUENCE_MAX)] | None = None
    serial: Serial | None = None


class Proof(msgspec.Struct):
    """The row, its path through the audit's tree (RFC 9162), and the signed head: `fleet audit check-proof` checks it
    with the public key alone.
    """

    SCHEMA: ClassVar[dict[str, Any]] = {
        "required": ["version", "seq", "entry", "leaf", "index", "size", "path", "head"]
    }

    version: int
    seq: Sequence
    path: list[Sha256]
