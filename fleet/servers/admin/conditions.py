"""Conditional requests (RFC 9110, 13): what a client has seen against what there is."""

import hashlib
import re

from fleet.domain.errors import FleetError
from fleet.servers.admin.context import Call
from fleet.servers.admin.messages import Headers
from fleet.servers.refusals import HttpRefused

_TAG = r'(?:W/)?"[\x21\x23-\x7e]*"'
_LIST = re.compile(rf"\s*{_TAG}\s*(?:,\s*{_TAG}\s*)*")
_TAGS = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')

CHANGED = "changed-meanwhile"
"""The registry's word for a write that was meant for an older revision."""


def content_etag(content: bytes) -> str:
    """The ETag of what has no revision."""
    return hashlib.sha256(content).hexdigest()[:32]


def if_match(headers: Headers) -> frozenset[str] | None:
    """The ETags of If-Match that a change may be for; None for any. A weak one never matches (RFC 9110, 13.1.1).

    Raises: HttpRefused: 400 `bad-etag`; 428 when the header is not there.
    """
    text = _joined(headers, "If-Match")
    if text is None:
        raise HttpRefused(428, "if-match-needed", 'Say which one you change: If-Match with the ETag read, or "*".')
    if text.strip() == "*":
        return None
    return frozenset(tag for weak, tag in _parsed(text) if not weak)


def none_match(headers: Headers, etag: str) -> bool:
    """Whether If-None-Match says that the client has `etag` already. Raises: HttpRefused: 400 `bad-etag`."""
    text = _joined(headers, "If-None-Match")
    if text is None:
        return False
    return text.strip() == "*" or etag in {tag for _, tag in _parsed(text)}


def _joined(headers: Headers, name: str) -> str | None:
    """A list that comes on several lines is one list (RFC 9110, 5.3)."""
    return ", ".join(headers.getall(name)) if name in headers else None


def _parsed(text: str) -> list[tuple[str, str]]:
    if not _LIST.fullmatch(text):
        raise HttpRefused(400, "bad-etag", 'An ETag is a text in double quotes, such as "3".')
    return _TAGS.findall(text)


def demand_match(call: Call, revision: int, what: str) -> None:
    """Go on when the change is for `revision`, or for any. Raises: HttpRefused: 412 `changed-meanwhile`."""
    if call.if_match is not None and str(revision) not in call.if_match:
        raise stale(f"{what} has been changed since it was read.")


def stale(message: str) -> HttpRefused:
    return HttpRefused(412, CHANGED, f"{message} Read it again and retry.")


def is_stale(error: FleetError) -> bool:
    """Whether `error` says that somebody changed it first."""
    return error.code == CHANGED
