"""Times as RFC 3339 writes them."""

from datetime import UTC, datetime

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(at: datetime, timespec: str = "auto") -> str:
    """`at`, which must be aware, as RFC 3339 writes it in UTC; `timespec` as in `datetime.isoformat`."""
    return at.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
