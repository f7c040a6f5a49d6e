"""Requests of programs on the device: a message with a response topic and correlation data (MQTT 5.0, 4.10)."""

import base64
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from device_agent.apps.control_server import Exchange
from device_agent.apps.inbound import Inbound
from device_agent.apps.shares import has_share
from device_agent.config.topics import filter_for
from device_agent.errors import RequestFailed
from device_agent.link.connection import Connection
from device_agent.link.mqtt_link import MQTT_5
from device_agent.packets import Extras, Received
from fleet.est_client.errors import ClientError

REPLY_TOPIC = "devices/{id}/down/replies"
PENDING_MAX = 256
WAITING_SIZE_MAX = 2 * 1024 * 1024  # bytes of the payloads of those that are not sent yet
_CORRELATION_SIZE = 16  # bytes

Send = Callable[[Extras, Callable[[str], None]], None]


class Agent(Protocol):
    """The interface of the agent that requests need."""

    device_id: str
    connection: Connection
    inbound: Inbound
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Pending:
    exchange: Exchange
    until: float
    seconds: float
    size: int
    uid: int


class Requests:
    """One subscription serves them all; the correlation data tells the responses apart."""

    uid = 0
    """Their subscription is the agent's own."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._topic = filter_for(REPLY_TOPIC, agent.device_id)
        self._pending: dict[bytes, _Pending] = {}
        self._unsent: dict[bytes, Send] = {}
        """Those of the pending ones that wait for the subscription."""
        self._asking = False

    def start(self, exchange: Exchange, seconds: float, send: Send, size: int = 0) -> None:
        """Send with `send` once responses can be received, and answer the exchange with the response. `size`: bytes
        that it keeps until then.

        Raises: RequestFailed if there are too many, or too many of this user.
        """
        uid = exchange.client.peer.uid
        pending = _Pending(exchange, self._agent.monotonic() + seconds, seconds, size, uid)
        self._check_share(pending)
        correlation = os.urandom(_CORRELATION_SIZE)
        self._pending[correlation], self._unsent[correlation] = pending, send
        self._agent.inbound.hear(self._topic, self._take)
        if self._asking:
            return
        try:
            self._agent.inbound.subscriptions.hold(self._topic, 1, self, self._on_subscribed)
        except ClientError:
            self._forget(correlation)
            raise
        self._asking = True

    def _check_share(self, new: _Pending) -> None:
        all_of, mine = self._pending.values(), [each for each in self._pending.values() if each.uid == new.uid]
        sizes = {correlation: self._pending[correlation].size for correlation in self._unsent}
        my_sizes = [size for correlation, size in sizes.items() if self._pending[correlation].uid == new.uid]
        if not has_share(new.uid, PENDING_MAX, len(all_of), len(mine)) or not has_share(
            new.uid, WAITING_SIZE_MAX, sum(sizes.values()), sum(my_sizes), new.size
        ):
            raise RequestFailed(
                f"There are {len(all_of)} requests already that wait for a response, {len(mine)} of this user."
            )

    def _on_subscribed(self, reason: str) -> None:
        self._asking = False
        for correlation, send in tuple(self._unsent.items()):
            if reason:
                self._fail(correlation, f"Responses to {self._topic} cannot be received: {reason}.")
            elif self._agent.connection.protocol != MQTT_5:
                self._fail(correlation, "The server speaks MQTT 3.1.1, which has no requests and responses.")
            else:
                del self._unsent[correlation]
                self._send(correlation, send)

    def _send(self, correlation: bytes, send: Send) -> None:
        def on_done(failure: str) -> None:
            if failure:
                self._fail(correlation, f"The server did not accept the request: {failure}.")

        try:
            send(Extras(self._topic, correlation, math.ceil(self._pending[correlation].seconds)), on_done)
        except ClientError as error:
            self._fail(correlation, error.message)

    def _forget(self, correlation: bytes) -> _Pending | None:
        self._unsent.pop(correlation, None)
        return self._pending.pop(correlation, None)

    def seconds_left(self) -> float:
        """Until the first of them has waited too long."""
        return max(
            0.0, min((each.until for each in self._pending.values()), default=math.inf) - self._agent.monotonic()
        )

    def tick(self) -> None:
        """End what has waited too long."""
        now = self._agent.monotonic()
        for correlation, pending in tuple(self._pending.items()):
            if pending.exchange.closed:
                self._forget(correlation)
            elif now >= pending.until:
                away = "" if self._agent.connection.is_up else " The agent is not connected."
                self._fail(correlation, f"There was no response within {pending.seconds:g} s.{away}")

    def refused(self, topic_filter: str, reason: str) -> None:
        """The server refuses the responses' subscription from now on."""
        for correlation in tuple(self._pending):
            self._fail(correlation, f"Responses to {topic_filter} cannot be received: {reason}.")

    def _take(self, message: Received) -> None:
        pending = self._forget(message.extras.correlation)
        if pending is not None:
            pending.exchange.answer(topic=message.topic, payload=base64.b64encode(message.payload).decode())

    def _fail(self, correlation: bytes, message: str) -> None:
        pending = self._forget(correlation)
        if pending is not None:
            pending.exchange.refuse(message, code=RequestFailed.code)
