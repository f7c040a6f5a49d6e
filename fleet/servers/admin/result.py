"""What a handler gives back."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct, field

from fleet.servers.admin.messages import Stream

Body = TypeVar("Body")


class Result(Struct, Generic[Body], frozen=True):
    """An answer that is still a value: `body` as JSON, `raw` in another media type, or a stream."""

    body: Body | Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    """Without quotes; "" when it has no revision."""
    media_type: str = "application/json"
    raw: bytes | None = None
    stream: Stream | None = None
