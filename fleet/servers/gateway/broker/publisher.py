"""The fleet's own client at the broker, by which it publishes what no device may: `devices/ID/fleet/#` and presence.

    publisher = BrokerPublisher(upstream)
    subscribed = await publisher.publish("devices/cam-7/fleet/renew", b"{}")
    await publisher.close()

It connects when there is something to publish, and stays connected. Each message is of QoS 1, and is said to be
published when the broker has acknowledged it. Nothing is kept for a broker that is away: who publishes gets an error.
"""

import asyncio
import logging
import random
import secrets
from collections import Counter

from fleet.config.logs import FailureLog, log_event
from fleet.domain.errors import Unavailable
from fleet.mqtt_client.client import MqttClient
from fleet.servers.gateway.broker.mosquitto import PUBLISHER
from fleet.servers.gateway.broker.proxy_header import own_header
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.wire.mqtt.codes import V5, V311, Reason, is_refusal
from fleet.wire.mqtt.connect import Connack, Connect
from fleet.wire.mqtt.publish import Publish

log = logging.getLogger("fleet.broker")
_silent = logging.getLogger("fleet.broker.command")  # whose error says it
_silent.addHandler(logging.NullHandler())
_silent.propagate = False

ANSWER_SECONDS_MAX = 5.0
IN_FLIGHT_MAX = 16  # unacknowledged at once, 1 MiB: fewer than mosquitto takes
WAITING_MAX = 1_000  # callers; presence comes with a hundred
BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.25, 8.0
_NO_MATCHING_SUBSCRIBERS = 0x10  # MQTT 5.0, 3.4.2.1


class BrokerPublisher:
    """One connection to `upstream`. Implements `Publisher` of the services."""

    def __init__(self, upstream: Upstream, *, logs: bool = True) -> None:
        self.counters = Counter[str]()
        """Messages by what became of them: published, not-subscribed (of those), or the code of the failure."""
        self._upstream = upstream
        self._version = V311  # of the connection
        self._connecting = asyncio.Lock()
        self._client: MqttClient | None = None
        self._in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._waiting = 0
        self._backoff_seconds = 0.0
        self._retry_at = 0.0
        self._log = log if logs else _silent
        self._failures = FailureLog(self._log, "publisher")

    @property
    def is_connected(self) -> bool:
        return self._client is not None and not self._client.lost.done()

    async def publish(self, topic: str, payload: bytes) -> bool | None:
        """Returns when the broker has taken the message: whether anybody had subscribed to it; None: it does not say.

        Raises: Unavailable: `broker-unreachable`, `publish-refused`, `publisher-busy`.
        """
        try:
            subscribed = await self._published(topic, payload)
        except Unavailable as error:
            self.counters[error.code] += 1
            raise
        self.counters["published"] += 1
        if subscribed is False:
            self.counters["not-subscribed"] += 1
        return subscribed

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()

    async def _published(self, topic: str, payload: bytes) -> bool | None:
        if "." in topic and self._upstream.access.refuses_dots:
            what = f"The broker would take the dot in {topic} for a slash."
            raise Unavailable("publish-refused", what, "Choose a name, and a device id, without dots.")
        if self._waiting >= WAITING_MAX:
            raise Unavailable("publisher-busy", "Too many messages of the fleet wait for the broker.", "Try again.")
        self._waiting += 1
        try:
            async with self._in_flight:
                client = await self._connected()
                code = await self._delivered(client, Publish(topic, payload))
        finally:
            self._waiting -= 1
        self._backoff_seconds = 0.0
        if is_refusal(code):
            self._failures.failed(outcome="refused", broker=self._upstream.address, code=f"{code:#04x}")
            what = f"The broker refused a message of the fleet (code {code:#04x})."
            raise Unavailable("publish-refused", what, f"Let its user {PUBLISHER} write to {topic}.")
        self._failures.succeeded()
        return code != _NO_MATCHING_SUBSCRIBERS if self._version == V5 else None

    async def _delivered(self, client: MqttClient, message: Publish) -> int:
        """The broker's reason code."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await client.deliver(message)
        except (TimeoutError, ConnectionError) as error:
            client.disconnect()
            problem, advice = (
                str(error) or "it does not answer",
                "Try again; it may have taken the message all the same.",
            )
            raise self._unreachable(problem, advice) from error

    async def _connected(self) -> MqttClient:
        async with self._connecting:
            if self._client is not None and self.is_connected:
                return self._client
            if asyncio.get_running_loop().time() < self._retry_at:
                what = "The broker could not be reached a moment ago."
                raise Unavailable("broker-unreachable", what, "Try again in a few seconds.")
            self._client = None
            try:
                self._client = await self._connect()
            except (OSError, TimeoutError) as error:
                raise self._unreachable(str(error) or "it does not answer") from error
            log_event(self._log, logging.INFO, "publisher", outcome="connected", broker=self._upstream.address)
            return self._client

    def _unreachable(self, problem: str, advice: str = "Try again.") -> Unavailable:
        """The error; the next attempt is later each time, until a message has been acknowledged."""
        self._backoff_seconds = min(max(2 * self._backoff_seconds, BACKOFF_SECONDS_MIN), BACKOFF_SECONDS_MAX)
        wait_seconds = random.uniform(0.5, 1) * self._backoff_seconds  # noqa: S311  several processes begin together
        self._retry_at = asyncio.get_running_loop().time() + wait_seconds
        self._failures.failed(outcome="failed", broker=self._upstream.address, reason=problem)
        return Unavailable("broker-unreachable", f"The broker cannot take the message: {problem}.", advice)

    async def _connect(self) -> MqttClient:
        """Raises: OSError, TimeoutError."""
        version = V5 if self._upstream.speaks_v5 else V311
        client, connack = await self._try(version)
        if version == V5 and connack.code == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            version = V311
            client, connack = await self._try(version)
        if connack.code:
            raise ConnectionError(f"it refused its user {PUBLISHER} (code {connack.code:#04x})")
        self._version = version
        return client

    async def _try(self, version: int) -> tuple[MqttClient, Connack]:
        """Connected, unless the answer refuses. Raises: OSError, TimeoutError."""
        # Random: that of another process or node must not take this session over.
        client_id, password = f"{PUBLISHER}-{secrets.token_hex(8)}", self._upstream.access.password
        client = MqttClient(Connect(version, client_id, username=PUBLISHER, password=password))
        is_accepted = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._upstream.connect(lambda: client, own_header(self._upstream))
                connack = await client.answer()
            is_accepted = not connack.code
        finally:
            if not is_accepted:
                client.disconnect()
        return client, connack
