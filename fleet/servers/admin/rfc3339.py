"""Times as RFC 3339 texts, in UTC."""

import re
from datetime import UTC, datetime

PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
_RFC3339 = re.compile(PATTERN)


def instant(text: str) -> datetime | None:
    """The time that `text` says, in UTC; None when it says none, or one that is beyond the calendar."""
    if not _RFC3339.search(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
