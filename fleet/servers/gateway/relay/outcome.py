"""What becomes of a packet: it goes on as it is, it is dropped, or other bytes go on in its place; and who decides."""

import enum
from typing import Protocol


class Fate(enum.Enum):
    FORWARDED = enum.auto()
    DROPPED = enum.auto()


Outcome = bytes | Fate
"""Bytes: these, in place of the packet."""


class Handler(Protocol):
    """Decides on packets. A method may raise CloseSession or a WireError: the packets before are still forwarded."""

    def topic_allowed(self, topic: str) -> bool: ...

    def flags_allowed(self, topic: bytes, *, qos: int, retain: bool) -> bool: ...

    def hold(self, topic: str, packet_id: int, size: int) -> bool:
        """Whether its receiver may hold this PUBLISH of QoS 2, or has room for this one of QoS 0 (`packet_id` 0); when
        not, the handler has answered it.
        """

    def may_retain(self, topic: str, qos: int, packet_id: int, size: int) -> bool:
        """Whether its receiver may retain this PUBLISH with `size` bytes of payload; when not, the handler has answered
        it.
        """

    def response_allowed(self, topic: str) -> bool:
        """Whether a PUBLISH may ask for a response on `topic`."""

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        """A PUBLISH is dropped; `packet_id` is 0 for QoS 0."""

    def response_refused(self, topic: str, qos: int, packet_id: int) -> None:
        """The same, for its Response Topic."""

    def packet(self, first: int, body: bytes) -> Outcome:
        """What becomes of this packet, which is no PUBLISH."""
