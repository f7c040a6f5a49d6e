"""Who holds a device's session at the broker: this gateway, or another in front of the same broker."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

from fleet.domain.client_ids import device_of
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.session.phases import Phase

HeldElsewhere = Callable[[str], Awaitable[bool | None]]
"""Whether another gateway in front of the same broker holds a session of the client id; None: not known."""


class OpenSession(Protocol):
    phase: Phase

    @property
    def client_id(self) -> str: ...

    def close(self, reason: CloseReason) -> None: ...


class SessionHolders:
    """`of_device`: this gateway's open sessions of a device. `held_elsewhere`: None where there is no other gateway."""

    def __init__(
        self,
        of_device: Callable[[str], tuple[OpenSession, ...]],
        held_elsewhere: HeldElsewhere | None,
        spawn: Callable[[Coroutine[object, object, None]], None],
    ) -> None:
        self._of_device = of_device
        self._held_elsewhere = held_elsewhere
        self._spawn = spawn

    def holds(self, client_id: str) -> bool:
        """Whether the broker has got a CONNECT with its `client_id` from here, and the session lives."""
        at_broker = (Phase.AWAITING_CONNACK, Phase.RELAYING)
        sessions = self._of_device(device_of(client_id))
        return any(session.phase in at_broker and session.client_id == client_id for session in sessions)

    async def is_held_elsewhere(self, client_id: str) -> bool | None:
        """Whether another gateway of the broker has a session of the client id; None: not known."""
        return await self._held_elsewhere(client_id) if self._held_elsewhere is not None else False

    def on_broker_lost(self, session: OpenSession, reason: CloseReason) -> None:
        """The broker has closed `session`'s connection: close it for `reason`, or because the device has connected
        elsewhere."""
        if reason is close_reasons.BROKER_LOST and self._held_elsewhere is not None:
            self._spawn(self._close_lost(session, self._held_elsewhere(session.client_id)))
        else:
            session.close(reason)

    async def _close_lost(self, session: OpenSession, is_held_elsewhere: Awaitable[bool | None]) -> None:
        session.close(close_reasons.TAKEN_OVER if await is_held_elsewhere else close_reasons.BROKER_LOST)
