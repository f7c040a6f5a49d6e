"""What a handler gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.servers.admin.messages import Stream

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """An answer that is still a value: `body` as JSON, or `raw` in another media type."""

    body: Json = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    """Without quotes; "" for none of its own."""
    media_type: str = "application/json"
    raw: bytes | None = None
    stream: Stream | None = None
    """Written in place of a body."""
