"""Stored responses of requests with an idempotency key: a repeated request gets the same response."""

from datetime import datetime, timedelta

from msgspec import Struct

ANSWER_KEPT = timedelta(hours=24)  # a client that lost a response repeats its request within minutes


class Answer(Struct, frozen=True):
    """The response to the request of `actor` with the idempotency key `key`."""

    actor: str
    key: str
    request_sha256: bytes
    """Hash of method, path and body: the same key with another request is an error."""
    status: int
    body: str
    at: datetime
