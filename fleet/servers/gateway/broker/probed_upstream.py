"""Upstream wrapper that asks the broker every second, on a session of its own, and knows whether it answers.

    upstream = ProbedUpstream(broker)
    async with background(upstream.run(on_silent), "the broker's probe"): ...

A broker that hangs keeps its port or socket open: connections succeed, and nothing follows. While it leaves pings
unanswered, connections are refused at once. Pings are counted, not seconds, so that a pause of our own process or of
the machine counts as one. Any CONNACK is an answer, a refusal too.

Whether a broker of others is reachable at all is known by each connection to it, a session's or ours, and logged when
it changes. While it is not, the gateway stays open and refuses each device with "server unavailable".
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import cast

from fleet.config.clock import Clock, utc_now
from fleet.config.logs import log_event
from fleet.config.timestamps import rfc3339
from fleet.servers.gateway.broker.upstream import Factory, Upstream, UpstreamWrapper
from fleet.wire.errors import WireError
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V311, PacketType
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PacketReader

log = logging.getLogger("fleet.broker")

PROBE_SECONDS = 1.0
UNANSWERED_MAX = 3  # in a row: seen after four seconds at the most
RECONNECT_UNANSWERED = 10  # on a path that lost our connection, an answer never comes
USER = "_probe"  # no device's: their ids start with a letter or a digit


class BrokerSilent(OSError):
    """The broker does not answer."""


class ProbedUpstream(UpstreamWrapper):
    """`upstream`, and whether it answers and can be reached. Implements Upstream."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        clock: Clock = utc_now,
        probe_seconds: float = PROBE_SECONDS,
        logs: bool = True,
    ) -> None:
        super().__init__(upstream)
        self._clock = clock
        self._is_reachable: bool | None = None  # unknown
        self._since = clock()
        self._probe_seconds = probe_seconds
        self._logs = logs  # of those of one broker in a process, one
        self._unanswered = 0
        self._is_refused = False  # the last connection: nobody listens
        self._reported = False
        self._session: _ProbeSession | None = None
        self._connecting: asyncio.Task[None] | None = None

    def answers(self) -> bool:
        """Whether it has answered within the last few seconds."""
        return self._unanswered <= UNANSWERED_MAX

    def is_silent(self) -> bool:
        """Whether it accepts connections, and does not answer."""
        return not self.answers() and not self._is_refused

    async def connect(self, factory: Factory) -> None:
        """Raises: BrokerSilent: at once, while it does not answer. OSError, TimeoutError."""
        if self.is_silent():
            raise BrokerSilent("The broker does not answer.")
        await self._reach(factory)

    def status(self) -> dict[str, object]:
        """JSON value for `GET /v1/status`."""
        status: dict[str, object] = {"broker": self.describe()}
        if not self.is_ours:
            status |= {"reachable": self._is_reachable, "since": rfc3339(self._since, "seconds")}
        return {**status, "answers": self.answers()}

    async def run(self, on_silent: Callable[[], None] = lambda: None) -> None:
        """Ask every second, until cancelled. `on_silent` is called when it stops answering, though it accepts
        connections.
        """
        try:
            while True:
                if self._ask():
                    on_silent()
                await asyncio.sleep(self._probe_seconds)
        finally:
            self._drop()

    def _ask(self) -> bool:
        """Whether it has stopped answering."""
        self._unanswered += 1
        is_lost = self._session is not None and self._is_reachable is False  # no other connection succeeds
        if self._unanswered % RECONNECT_UNANSWERED == 0 or is_lost:
            self._drop()
        stopped = self.is_silent() and not self._reported
        if stopped:
            self._reported = True
            self._log(logging.ERROR, "broker.silent", broker=self.address, unanswered=self._unanswered - 1)
        if self._session is not None:
            self._session.ping()
        elif self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        return stopped

    async def _reach(self, factory: Factory) -> None:
        """Connect, and note whether that was possible. Raises: OSError, TimeoutError."""
        try:
            await self._upstream.connect(factory)
        except (OSError, TimeoutError) as error:
            if self._changes(is_reachable=False):
                reason = str(error) or type(error).__name__
                self._log(logging.WARNING, "upstream", outcome="unreachable", broker=self.address, reason=reason)
            raise
        was_away = self._is_reachable is False
        if self._changes(is_reachable=True) and was_away:
            self._log(logging.WARNING, "upstream", outcome="reachable-again", broker=self.address)

    def _changes(self, *, is_reachable: bool) -> bool:
        """Whether this is new, of a broker of others."""
        if self.is_ours or self._is_reachable is is_reachable:
            return False
        self._is_reachable, self._since = is_reachable, self._clock()
        return True

    def _log(self, level: int, event: str, **fields: object) -> None:
        if self._logs:
            log_event(log, level, event, **fields)

    async def _connect(self) -> None:
        session = _ProbeSession(self._on_answer, self._on_lost)
        try:
            await self._reach(lambda: session)
        except TimeoutError:
            self._is_refused = False
        except OSError:
            self._is_refused = True
        else:
            self._is_refused = False
            if not session.is_lost:
                self._session = session
        finally:
            self._connecting = None

    def _drop(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _on_answer(self) -> None:
        self._unanswered = 0
        if self._reported:
            self._reported = False
            self._log(logging.WARNING, "broker.answers-again", broker=self.address)

    def _on_lost(self, session: "_ProbeSession") -> None:
        if self._session is session:
            self._session = None


class _ProbeSession(asyncio.Protocol):
    """CONNECT, then PINGREQ whenever asked. Nothing but CONNACK and then PINGRESP is an answer."""

    def __init__(self, on_answer: Callable[[], None], on_lost: Callable[["_ProbeSession"], None]) -> None:
        self.is_lost = False
        self._on_answer, self._on_lost = on_answer, on_lost
        self._reader = PacketReader(CONNECT_SIZE_MAX)
        self._expected = PacketType.CONNACK
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Random: the probe of another process or node must not take this session over.
        connect = Connect(V311, f"{USER}-{secrets.token_hex(8)}", clean=True, username=USER)
        self._transport.write(encode_connect(connect))

    def ping(self) -> None:
        if self._transport is not None and self._expected is PacketType.PINGRESP:
            self._transport.write(acks.PINGREQ)

    def data_received(self, data: bytes) -> None:
        try:
            for packet in self._reader.feed(data):
                if packet.type is not self._expected:
                    raise WireError("Not the packet that was asked for.")
                self._expected = PacketType.PINGRESP
                self._on_answer()
        except WireError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._on_lost(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
