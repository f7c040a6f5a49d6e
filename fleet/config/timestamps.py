"""Times as RFC 3339 writes them."""

import re
from datetime import UTC, datetime

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RFC3339_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
_RFC3339 = re.compile(RFC3339_PATTERN)


def rfc3339(at: datetime, timespec: str = "auto") -> str:
    """`at`, which must be aware, as RFC 3339 writes it in UTC; `timespec` as in `datetime.isoformat`."""
    return at.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def instant(text: str) -> datetime | None:
    """The time that `text` says, in UTC; None when it says none, or one that is beyond the calendar."""
    if not _RFC3339.search(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
