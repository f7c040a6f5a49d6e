"""An answer of HTTP/1.1 or 1.0 as bytes: its head and body in one piece, with a Content-Length."""

import functools
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11

_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # in a field value: RFC 9110, 5.5
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Response:
    """An answer. It is sent with Content-Length, Date, and a Server that reveals no version."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    closes: bool = field(init=False)
    """Whether the connection ends after it."""
    is_written: bool = False
    """Whether it was a stream, which its handler has written."""

    def __post_init__(self) -> None:
        self.closes = self.headers.get("Connection") == "close"

    def encoded(self, method: str, version: HttpVersion, *, closes: bool) -> bytes:
        """Head and body, in answer to a request of `method` and `version`."""
        return b"".join(self.parts(method, version, closes=closes))

    def parts(self, method: str, version: HttpVersion, *, closes: bool) -> tuple[bytes, bytes]:
        """Head and body, as `encoded`."""
        body = self.body
        has_size = self.status not in (204, 304) and (body or method != "HEAD")  # RFC 9110, 8.6
        size = f"Content-Length: {len(body)}\r\n" if has_size else ""
        head = encoded_head(self.status, self.headers, size, version, closes=closes)
        return head, body if size and method != "HEAD" else b""


@functools.lru_cache(maxsize=256)
def _fields(headers: tuple[tuple[str, str], ...]) -> str:
    for name, value in headers:
        if _FORBIDDEN.search(name) or _FORBIDDEN.search(value):
            raise ValueError("A header field holds a control character.")
    return "".join(f"{name}: {value}\r\n" for name, value in headers)


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def encoded_head(status: int, headers: Mapping[str, str], framing: str, version: HttpVersion, *, closes: bool) -> bytes:
    """Status line and header fields; `framing`: the field that says where the body ends."""
    persistence = ""
    if "Connection" not in headers:
        if closes and version == HttpVersion11:
            persistence = "Connection: close\r\n"
        elif not closes and version == HttpVersion10:
            persistence = "Connection: keep-alive\r\n"
    return (
        f"HTTP/{version[0]}.{version[1]} {status} {_PHRASES.get(status, '')}\r\n{_fields(tuple(headers.items()))}"
        f"Server: fleet\r\n{framing}Date: {_date(int(time.time()))}\r\n{persistence}\r\n"
    ).encode()
