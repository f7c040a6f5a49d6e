"""Upstream wrapper that asks the broker every second, on a session of its own, and knows whether it answers.

    upstream = ProbedUpstream(broker)
    async with background(upstream.run(on_silent), "the broker's probe"): ...

A broker that hangs keeps its port or socket open: connections succeed, and nothing follows. While it leaves pings
unanswered, connections are refused at once. Pings are counted, not seconds, so that a pause of our own process or of
the machine counts as one. Any CONNACK is an answer, a refusal too.

Whether an external broker is reachable at all is known by each connection to it, a session's or ours, and logged when
it changes. While it is not, the gateway stays open and refuses each device with "server unavailable".
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator

from fleet.config.clock import Clock, utc_now
from fleet.config.logs import log_event
from fleet.config.timestamps import rfc3339
from fleet.mqtt_client.client import MqttVisit
from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.proxy_header import own_header
from fleet.servers.gateway.broker.upstream import Upstream, UpstreamWrapper
from fleet.wire.errors import Malformed
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V311, PacketType
from fleet.wire.mqtt.connect import Connect
from fleet.wire.mqtt.reader import Packet

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

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        """Raises: BrokerSilent: at once, while it does not answer. OSError, TimeoutError."""
        if self.is_silent():
            raise BrokerSilent("The broker does not answer.")
        await self._reach(factory, header)

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

    async def _reach(self, factory: Factory, header: bytes) -> None:
        """Connect, and note whether that was possible. Raises: OSError, TimeoutError."""
        try:
            await self._upstream.connect(factory, header)
        except (OSError, TimeoutError) as error:
            if self._changes(is_reachable=False):
                reason = str(error) or type(error).__name__
                self._log(logging.WARNING, "upstream", outcome="unreachable", broker=self.address, reason=reason)
            raise
        was_away = self._is_reachable is False
        if self._changes(is_reachable=True) and was_away:
            self._log(logging.WARNING, "upstream", outcome="reachable-again", broker=self.address)

    def _changes(self, *, is_reachable: bool) -> bool:
        """Whether this is new, of an external broker."""
        if self.is_ours or self._is_reachable is is_reachable:
            return False
        self._is_reachable, self._since = is_reachable, self._clock()
        return True

    def _log(self, level: int, event: str, **fields: object) -> None:
        if self._logs:
            log_event(log, level, event, **fields)

    async def _connect(self) -> None:
        session = _ProbeSession(self._on_answer, self._on_lost, self.access.password)
        try:
            await self._reach(lambda: session, own_header(self))
        except TimeoutError:
            self._is_refused = False
        except OSError:
            self._is_refused = True
        else:
            self._is_refused = False
            if not session.lost.done():
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


class _ProbeSession(MqttVisit):
    """CONNECT, then PINGREQ whenever asked. Nothing but CONNACK and then PINGRESP is an answer."""

    def __init__(
        self, on_answer: Callable[[], None], on_lost: Callable[["_ProbeSession"], None], password: bytes | None
    ) -> None:
        # Random: the probe of another process or node must not take this session over.
        client_id = f"{USER}-{secrets.token_hex(8)}"
        super().__init__(Connect(V311, client_id, clean=True, username=USER, password=password))
        self._on_answer, self._on_lost = on_answer, on_lost
        self._is_answered = False

    def ping(self) -> None:
        if self._is_answered:
            self._write(acks.PINGREQ)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_lost(self)

    def _read(self, packets: Iterator[Packet]) -> None:
        if not self._is_answered:  # the CONNACK has come
            self._is_answered = True
            self._on_answer()
        for packet in packets:
            if packet.type is not PacketType.PINGRESP:
                raise Malformed("Not the packet that was asked for.")
            self._on_answer()

    def _break_off(self) -> None:
        super()._break_off()
        self.close()
