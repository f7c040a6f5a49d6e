"""Presence: who is connected, since when, and how a session ended that is over.

The registry holds the last session of each client id. A process that holds sessions, a run, says every few seconds that
it lives; sessions of a run that is over are over as well, whether it could say so or not.
"""

import enum
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol, Self

from msgspec import Struct
from msgspec.structs import astuple

from fleet.config.timestamps import rfc3339
from fleet.domain.changes import Event, EventKind

ENDED_ROWS_MAX = 16  # of one device: it may choose the names in its client ids
SILENT_AFTER = timedelta(seconds=60)  # six heartbeats; clocks of two nodes differ by less
RUN_KEPT = timedelta(days=7)  # of a node that was never started again
CLIENT_ID_MAX = 256  # characters
RUN_ENDED = "server-lost"
"""Close reason of a session whose process has ended without saying so."""


class ClientSession(Struct, frozen=True):
    """An MQTT session, from CONNACK to its close; the newest of its client id."""

    device_id: str
    client_id: str
    connected_at: datetime
    seen_at: datetime
    """When the device was last heard: noted at both ends, and every few minutes between."""
    ended_at: datetime | None
    """None: it was open when this was written."""
    reason: str
    """Code of its close; "" while it is open."""
    address: str
    """IP address of the device, behind a trusted balancer that of the PROXY header."""
    node: str
    run: str
    """Of the process that holds it."""
    mqtt: str
    """Protocol version, "5.0" or "3.1.1"."""
    tls: str
    tls_group: str


class GatewayRun(Struct, frozen=True):
    """A process with sessions, from its start to its end."""

    run: str
    """Random."""
    node: str
    worker: int
    seen_at: datetime
    """Its last sign of life."""


class SessionState(enum.StrEnum):
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    UNKNOWN = "unknown"
    """It was connected at a node that is not heard from."""


class SessionFound(Struct, frozen=True):
    """A session as the registry has it, with what is known of its run."""

    session: ClientSession
    run_seen_at: datetime | None
    """None: the run is over."""

    def state(self, now: datetime) -> SessionState:
        if self.session.ended_at is not None or self.run_seen_at is None:
            return SessionState.DISCONNECTED
        return SessionState.UNKNOWN if now - self.run_seen_at > SILENT_AFTER else SessionState.CONNECTED

    @property
    def ended_at(self) -> datetime | None:
        """Of one that was lost with its run, when it was last seen."""
        session = self.session
        return session.seen_at if session.ended_at is None and self.run_seen_at is None else session.ended_at

    @property
    def reason(self) -> str:
        lost = self.session.ended_at is None and self.run_seen_at is None
        return RUN_ENDED if lost else self.session.reason


class SessionFilter(Struct, frozen=True):
    """Which sessions: those of which everything given is true."""

    device_id: str | None = None
    model: str | None = None
    node: str | None = None
    is_open: bool | None = None
    """True: not ended, as far as is known."""


EVERY_SESSION = SessionFilter()


class SessionNotice(Struct, frozen=True):
    """That a device has connected, or is gone."""

    device_id: str
    client_id: str
    connected_at: str
    """RFC 3339. Of two workers the end of a session may be announced after the beginning of the next."""
    address: str
    reason: str
    """Why it is gone; "": it has connected."""

    @classmethod
    def of(cls, session: ClientSession) -> Self:
        return cls(session.device_id, session.client_id, rfc3339(session.connected_at), session.address, session.reason)

    @property
    def kind(self) -> str:
        return "device.disconnected" if self.reason else "device.connected"

    @property
    def members(self) -> dict[str, str]:
        """What is said of the session."""
        known = {"client_id": self.client_id, "connected_at": self.connected_at, "address": self.address}
        return {**known, **({"reason": self.reason} if self.reason else {})}


def encode_notices(run: str, notices: Sequence[SessionNotice]) -> Event:
    """One event for all of them."""
    return Event(EventKind.SESSIONS_CHANGED, run, json.dumps([astuple(each) for each in notices]))


def decode_notices(event: Event) -> list[SessionNotice]:
    """Those of an event of `encode_notices`."""
    return [SessionNotice(*each) for each in json.loads(event.detail)]


class PresenceStore(Protocol):
    """Sessions as the registry has them."""

    async def begin_run(self, run: GatewayRun) -> None:
        """`run` holds sessions from now on; earlier runs of its worker are over. Raises: Unavailable."""

    async def end_runs(self, node: str, run: str | None = None, *, worker: int | None = None) -> None:
        """That run is over, or those of that worker; without either every run of the node. Raises: Unavailable."""

    async def note_sessions(self, sessions: Sequence[ClientSession], run: GatewayRun) -> None:
        """Store `sessions`, and that `run`, which holds them, lives. What is known of a newer session of the same
        client id stays. Raises: Unavailable.
        """

    async def sessions(
        self, where: SessionFilter = EVERY_SESSION, *, after: tuple[str, str] = ("", ""), limit: int = 1000
    ) -> list[SessionFound]:
        """Sessions that match `where`, by device id and client id, after these, at most `limit`."""
