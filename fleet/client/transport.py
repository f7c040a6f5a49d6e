"""Transports of the API's client: how one request reaches the API and its answer comes back."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """By name; look-ups ignore case."""
    body: bytes


class Transport(Protocol):
    """Sends one request at a time."""

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """The answer to `method` on `target`: an absolute path with its query, percent-encoded.

        Raises: FleetError: no answer could be had. Refusals of the API are answers.
        """
        ...

    def close(self) -> None:
        """Release its connection. It cannot be used afterwards."""
        ...
