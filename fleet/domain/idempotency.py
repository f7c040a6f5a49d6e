"""Answers kept for requests with an idempotency key: the same request sent again gets the same answer."""

from dataclasses import dataclass
from datetime import datetime, timedelta

ANSWER_KEPT = timedelta(hours=24)  # a client whose answer was lost repeats its request within minutes


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the request that `actor` sent with the idempotency key `key`."""

    actor: str
    key: str
    request_sha256: bytes
    """Of method, path and body: the same key with another request is an error."""
    status: int
    body: str
    at: datetime
