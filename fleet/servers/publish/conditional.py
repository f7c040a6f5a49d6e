"""Answers of files with validators, and conditional requests (RFC 9110, 13). Ranges are not served: RFC 9110, 14.2."""

import functools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime

from multidict import CIMultiDictProxy

from fleet.domain.published_file import CRL, PublishedFile
from fleet.servers.http_response import Response


def answer_file(file: PublishedFile, asked: CIMultiDictProxy[str], now: datetime) -> Response:
    """200 with `file`, or 304 when the client has it already."""
    headers = {
        "ETag": file.etag,
        "Last-Modified": http_date(file.modified_at),
        **freshness(file.fresh_seconds(now), now),
        "Accept-Ranges": "none",
    }
    if _has_it(file, asked):
        return Response(304, b"", headers)
    return Response(200, file.body, {"Content-Type": file.content_type, **headers})


def freshness(seconds: int, now: datetime) -> dict[str, str]:
    """Headers that allow any cache to keep an answer for `seconds` from `now` on."""
    until = http_date(now + timedelta(seconds=seconds))
    return {"Cache-Control": f"max-age={seconds}, public, no-transform, must-revalidate", "Expires": until}


def http_date(at: datetime) -> str:
    """`at` as an HTTP-date, in whole seconds (RFC 9110, 5.6.7)."""
    return _shown(at.astimezone(UTC).replace(microsecond=0))


@functools.lru_cache(maxsize=1024)  # answers of one second share theirs
def _shown(second: datetime) -> str:
    return format_datetime(second, usegmt=True)


def _has_it(file: PublishedFile, asked: CIMultiDictProxy[str]) -> bool:
    # RFC 9110, 13.2.2: a date is not looked at where there is a tag.
    if tags := asked.getall("If-None-Match", None):
        held = {tag.strip().removeprefix("W/") for tag in ",".join(tags).split(",")}
        return bool(held & {"*", file.etag})
    if file.content_type == CRL:
        return False  # its date is of a whole second, and backdated: a client with a later one may lack the newest
    since = _date(asked.get("If-Modified-Since", ""))
    return since is not None and file.modified_at.replace(microsecond=0) <= since


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None  # RFC 9110, 13.1.3: one that is no date is ignored
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
