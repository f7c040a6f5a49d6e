"""The lines of a revocation journal: JSON in and out, and what makes one damaged. The format is in `revocations.py`."""

import json
import re
from pathlib import Path
from typing import Any

from fleet.domain.changes import Event
from fleet.domain.errors import Invalid

LINE_MAX = 1024  # octets; the longest is a distrust, with some 400
_LINEAGE = re.compile(r"[0-9a-f]{32}")
_FLEET = re.compile(r"[0-9a-f]{64}")

_text_of = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` with options makes an encoder for each call


def encoded(document: dict[str, object]) -> bytes:
    """The line of `document`."""
    return _text_of(document).encode() + b"\n"


def event_of(document: dict[str, Any]) -> Event:
    """The event of a line with `seq`."""
    return Event(document["kind"], document["subject"], document["detail"], document["seq"])


def damaged(path: Path, why: str) -> Invalid:
    advice = "Find out what edited it. A backup holds an older one."
    return Invalid("revocation-log-damaged", f"{path} is damaged: {why}.", advice)


def number_of(document: dict[str, Any]) -> int:
    """That of the event up to which the line covers all."""
    key = next(key for key in ("seq", "seen", "from") if key in document)
    number: int = document[key]
    return number


def parsed(line: bytes, path: Path) -> dict[str, Any]:
    """Raises: Invalid (`revocation-log-damaged`)."""
    try:
        document: dict[str, Any] = json.loads(line)
        number = number_of(document)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0 or len(line) > LINE_MAX:
            raise ValueError("no number")
        if not _LINEAGE.fullmatch(document["lineage"]):
            raise ValueError("no lineage")
        if "from" in document and not _FLEET.fullmatch(document["fleet"]):
            raise ValueError("no fleet")
        if "seq" in document and not all(isinstance(document[key], str) for key in ("kind", "subject", "detail")):
            raise ValueError("no event")
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError) as error:
        raise damaged(path, "a line of it cannot be read") from error
    return document
