"""Messages of the fleet for devices at another node, whose broker is its own: left in the registry, and answered there.

The node that is asked leaves one, the other publishes it and answers, and the first takes the answer with the message.
"""

from datetime import datetime
from typing import Protocol

from msgspec import Struct

OUTCOMES = {"subscribed": True, "not-subscribed": False, "published": None}
"""Answers of a broker that has taken it: whether anybody had subscribed. Any other is the code of an error."""


class NodeMessage(Struct, frozen=True):
    id: str
    """Random."""
    node: str
    """Where it is to be published."""
    topic: str
    payload: bytes
    expires_at: datetime
    """Nobody waits for its answer any more: who left it may have died. By the database's clock, if it has one: `now` is
    that of the caller, and the message lasts for the difference.
    """
    answer: str = ""
    """"": none yet."""


class NodeMessageStore(Protocol):
    """Messages that wait, for seconds."""

    async def leave_message(self, message: NodeMessage, now: datetime) -> None:
        """Raises: Unavailable, as all of these."""

    async def messages_for(self, node: str, now: datetime, limit: int) -> list[NodeMessage]:
        """Those without an answer that have not expired."""

    async def answer_message(self, message_id: str, answer: str) -> None:
        """Its payload goes. Nothing happens when it is gone."""

    async def answer_to(self, message_id: str) -> str:
        """Or "": there is none yet."""

    async def drop_message(self, message_id: str) -> None: ...

    async def drop_expired_messages(self, now: datetime) -> None:
        """Of every node."""
