"""What the records are made of: their base classes, and the types of single values with the limits that are checked."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import msgspec
from msgspec import UNSET, Meta

from fleet.config.timestamps import RFC3339_PATTERN, instant
from fleet.domain.members import about, at_most, pattern
from fleet.domain.tags import GROUPS_MAX, TAG_KEY, TAG_VALUE_MAX, TAGS_MAX
from fleet.services.revocation import REASON_MAX
from fleet.wire.identifiers import DEVICE_ID, NAME

Item = TypeVar("Item")

LIMIT_MAX = 1000  # rows of a page: about 300 KiB of devices
LIMIT = 100
CURSOR_SIZE_MAX = 512
CSR_TEXT_MAX = 32 * 1024  # twice the largest that is read
SEQUENCE_MAX = 2**53 - 1  # what every JSON reader can count to

# Patterns end in \Z: "$" would match before a final line break. They are published with "$", as ECMAScript has it.
NAME_PATTERN = rf"^{NAME}\Z"
DEVICE_ID_PATTERN = rf"^{DEVICE_ID}\Z"
SERIAL_PATTERN = r"^[0-9a-f]{1,40}\Z"
TOKEN_ID_PATTERN = r"^[0-9a-f]{12}\Z"  # noqa: S105
REQUEST_ID_PATTERN = r"^[0-9a-f]{16}\Z"
_PRINTABLE = r"^[^\x00-\x1f\x7f]*\Z"


Name = Annotated[str, pattern(NAME_PATTERN)]
DeviceId = Annotated[str, pattern(DEVICE_ID_PATTERN)]
Serial = Annotated[str, pattern(SERIAL_PATTERN, "Serial number, lower-case hex.")]
TokenId = Annotated[str, pattern(TOKEN_ID_PATTERN)]
RequestId = Annotated[str, pattern(REQUEST_ID_PATTERN)]
BulkId = Annotated[str, pattern(r"^[0-9a-f]{12}\Z", "Shared by the audit rows of one operation.")]
Sha256 = Annotated[str, pattern(r"^[0-9a-f]{64}\Z")]
CertificateSha256 = Annotated[Sha256, about("Of the certificate's DER.")]
KeySha256 = Annotated[Sha256, about("Of the DER SubjectPublicKeyInfo.")]
TimeText = Annotated[
    str, Meta(pattern=RFC3339_PATTERN, extra_json_schema={"format": "date-time"}, description="RFC 3339.")
]
"""A time that comes in: msgspec's own reader of times takes more than RFC 3339 has."""
Time = Annotated[datetime, Meta(tz=True)]
Count = Annotated[int, Meta(ge=0)]
Sequence = Annotated[int, Meta(ge=0, le=SEQUENCE_MAX)]
Names = list[Name]
ReasonText = Annotated[str, Meta(max_length=REASON_MAX, pattern=_PRINTABLE, description="For the audit.")]
Cursor = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]+\Z",
        max_length=CURSOR_SIZE_MAX,
        description="Position after the previous page, taken from its `next`.",
    ),
]
TagKey = Annotated[str, pattern(rf"^{TAG_KEY}\Z")]
TagValue = Annotated[str, Meta(min_length=1, max_length=TAG_VALUE_MAX, pattern=_PRINTABLE)]
Tags = Annotated[dict[TagKey, TagValue], Meta(max_length=TAGS_MAX)]
TagChanges = Annotated[dict[TagKey, TagValue | None], Meta(max_length=TAGS_MAX)]
Groups = Annotated[list[Name], Meta(max_length=GROUPS_MAX)]
Csr = Annotated[str, at_most(CSR_TEXT_MAX, "Certificate request (PKCS #10), PEM.")]


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON object of the API."""

    SCHEMA: ClassVar[dict[str, Any]] = {}
    """Keywords that its published schema has besides those of its fields."""

    @classmethod
    def of(cls, source: object, **given: Any) -> Self:
        """Made of `given` and, for the other fields, of the attributes of `source` with the same names."""
        return cls(**{name: given[name] if name in given else getattr(source, name) for name in cls.__struct_fields__})


def check_times(record: Record, *names: str) -> None:
    """Whether the times in these fields, where there are any, are on the calendar. For `__post_init__`.

    Raises: ValueError.
    """
    for name in names:
        text = getattr(record, name)
        if text is not None and instant(text) is None:
            raise ValueError(f"Expected an RFC 3339 time in `{name}`")


class Changes(Record):
    """A merge patch (RFC 7396): what is not in it stays as it is."""

    SCHEMA: ClassVar[dict[str, Any]] = {"minProperties": 1}

    def __post_init__(self) -> None:
        if all(getattr(self, name) is UNSET for name in self.__struct_fields__):
            raise ValueError("Expected at least 1 member")


CrlReasonText = Annotated[
    Literal[
        "unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn"
    ],
    about("Reason in CRLs and OCSP (RFC 5280, 5.3.1)."),
]


class Reason(Record):
    """The reason for a change."""

    reason: ReasonText = ""


NO_REASON = Reason()


class RevocationReason(Reason):
    """The reason for a revocation."""

    crl_reason: CrlReasonText = "unspecified"


NO_REVOCATION_REASON = RevocationReason()


class Paging(Record):
    """Query of a list."""

    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX, description="Maximum number of items in the page.")] = LIMIT
    cursor: Cursor | None = None


class Page(Record, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    next: Annotated[str | None, about("Path and query of the next page; null on the last.")]


class Problem(Record):
    """A refusal (RFC 9457)."""

    title: str
    status: int
    detail: str
    code: Annotated[str, about("Stable, for programs.")]
