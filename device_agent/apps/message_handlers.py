"""Handlers of the control requests about messages: send, subscribe, unsubscribe, ack, request."""

import base64
import binascii
import os
import shlex
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from device_agent.apps.access import Access, Rights
from device_agent.apps.control import undelivered
from device_agent.apps.control_server import Client, Exchange, Handler
from device_agent.apps.inbound import Inbound
from device_agent.apps.requests import Requests
from device_agent.apps.shares import is_within_share
from device_agent.config.topics import filter_for, topic_for
from device_agent.errors import Denied, SendRefused, SubscriptionRefused
from device_agent.link.connection import Connection
from device_agent.packets import Extras
from device_agent.spool.inbox import Incoming
from device_agent.spool.message_queue import Message, OnStored
from device_agent.spool.outbox import TTL_SECONDS_MAX, Outbox

FILTERS_OF_CLIENT_MAX = 64
KEEP_SECONDS_DEFAULT = 60.0
KEEP_SECONDS_MAX = 7 * 86400.0
REQUEST_SECONDS_DEFAULT = 30.0
REQUEST_SECONDS_MAX = 3600.0
SHARED = "$share/"  # MQTT 5.0, 4.8.2
CORRELATION_SIZE_MAX = 1024  # bytes


class Agent(Protocol):
    """The interface of the agent that the handlers need."""

    device_id: str
    connection: Connection
    outbox: Outbox
    inbound: Inbound
    monotonic: Callable[[], float]
    home: Path

    @property
    def stopping(self) -> bool: ...


class _Program:
    """A client as what receives messages."""

    def __init__(self, client: Client, run: str) -> None:
        self._client = client
        self._run = run
        self.uid = client.peer.uid
        self.filters: set[str] = set()

    @property
    def has_room(self) -> bool:
        return self._client.has_room

    def deliver(self, incoming: Incoming) -> None:
        message = incoming.message
        line: dict[str, Any] = {
            "event": "message",
            "topic": message.topic,
            "payload": base64.b64encode(message.payload).decode(),
            "qos": message.qos,
            "retain": message.retain,
        }
        if message.qos:
            line["message"] = f"{self._run}-{incoming.number}"
        if message.extras.response_topic:
            line["response_topic"] = message.extras.response_topic
        if message.extras.correlation:
            line["correlation"] = base64.b64encode(message.extras.correlation).decode()
        if message.extras.user:
            line["user"] = [list(each) for each in message.extras.user]
        if message.identifiers:
            line["filters"] = sorted(each for each in self.filters if message.is_for(each))
        self._client.send(line)

    def refused(self, topic_filter: str, reason: str) -> None:
        self.filters.discard(topic_filter)
        self._client.send({"event": "refused", "topic": topic_filter, "message": reason})

    def too_slow(self) -> None:
        self._client.too_slow()


@dataclass(slots=True)
class _Queued:
    """What a user has in the outbox."""

    messages: int = 0
    size: int = 0

    def count(self, size: int, sign: int) -> None:
        self.messages += sign
        self.size += sign * size


class MessageHandlers:
    def __init__(self, agent: Agent, access: Access) -> None:
        self._agent = agent
        self._access = access
        self._programs: dict[Client, _Program] = {}
        self._run = os.urandom(6).hex()
        """Of this process: message numbers start again with each."""
        self._queued: defaultdict[int, _Queued] = defaultdict(_Queued)
        """By user."""
        self._requests = Requests(agent)
        self._waiting: list[Exchange] = []
        """Of messages that are stored and not delivered."""
        self._refusal = ""

    def handlers(self) -> dict[str, Handler]:
        return {
            "send": self.send,
            "subscribe": self.subscribe,
            "unsubscribe": self.unsubscribe,
            "ack": self.ack,
            "request": self.request,
        }

    def gone(self, client: Client) -> None:
        """The client's connection has ended."""
        program = self._programs.pop(client, None)
        if program is not None:
            self._agent.inbound.gone(program)

    def connected(self) -> None:
        """The server accepts this device."""
        self._refusal = ""

    def refused(self, reason: str) -> None:
        """The server does not accept this device: requests that wait for a delivery fail at once."""
        self._refusal = reason
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.refuse(*undelivered(reason, self._agent.home), SendRefused.code)

    def seconds_left(self) -> float:
        """Until `tick` has something to do."""
        return self._requests.seconds_left()

    def tick(self) -> None:
        """At every turn of the loop."""
        self._requests.tick()

    def send(self, exchange: Exchange, request: dict[str, Any]) -> None:
        topic = self._topic(exchange, request)
        qos = request.get("qos", 1)
        if qos not in (0, 1):
            raise SendRefused("The QoS must be 0 or 1.")
        response_topic = str(request.get("response_topic", ""))
        extras = Extras(
            response_topic=self._response_topic(exchange, response_topic) if response_topic else "",
            correlation=_decoded(request, "correlation", "The correlation"),
            expiry_seconds=_ttl(request),
        )
        if len(extras.correlation) > CORRELATION_SIZE_MAX:
            raise SendRefused(f"The correlation is longer than {CORRELATION_SIZE_MAX} bytes.")
        payload = _decoded(request, "payload", "The payload")
        waits = bool(request.get("wait"))

        def on_done(failure: str) -> None:
            if waits and failure:
                advice = f"See at the fleet: fleet policy test {self._agent.device_id} publish {shlex.quote(topic)}."
                exchange.refuse(f"The message to {topic} was not delivered: {failure}.", advice, SendRefused.code)
            elif waits:
                exchange.answer()

        def on_accepted(failure: str) -> None:
            if failure:
                exchange.refuse(failure, "Nothing that was accepted before is lost.", SendRefused.code)
            elif not waits:
                exchange.answer()
            else:
                self._waiting = [each for each in self._waiting if not each.answered and not each.closed]
                self._waiting.append(exchange)
                if self._refusal:
                    self.refused(self._refusal)

        self._put(exchange, Message(topic, payload, int(qos), on_done, extras), on_accepted)

    def subscribe(self, exchange: Exchange, request: dict[str, Any]) -> None:
        """Answered once the server has granted or refused it."""
        topic_filter = filter_for(str(request.get("topic", "")), self._agent.device_id)
        qos = request.get("qos", 1)
        keep_seconds = _seconds(request, "keep_seconds", KEEP_SECONDS_DEFAULT, KEEP_SECONDS_MAX)
        if qos not in (0, 1):
            raise SubscriptionRefused("The QoS must be 0 or 1.")
        if topic_filter.startswith(SHARED):  # another device of the group may be given what a program here waits for
            raise SubscriptionRefused("Programs on a device have no shared subscriptions.", "Leave out $share/GROUP/.")
        if not self._rights(exchange).may_subscribe(topic_filter):
            raise Denied(f"This user may not subscribe to {topic_filter!r}.", "See [[apps.client]] in agent.toml.")
        client = exchange.client
        program = self._programs.get(client) or _Program(client, self._run)
        if self._agent.inbound.filters_of(program) >= FILTERS_OF_CLIENT_MAX:
            raise SubscriptionRefused(f"A program may have {FILTERS_OF_CLIENT_MAX} subscriptions.")

        def on_answer(reason: str) -> None:
            if reason:
                message = f"{topic_filter}: {reason}."
                asks = f"fleet policy test {self._agent.device_id} subscribe {shlex.quote(topic_filter)}"
                exchange.refuse(message, f"See at the fleet: {asks}.", SubscriptionRefused.code)
            else:
                exchange.answer(topic=topic_filter)

        self._programs[client] = program
        program.filters.add(topic_filter)
        self._agent.inbound.subscribe(program, topic_filter, int(qos), keep_seconds, on_answer)

    def unsubscribe(self, exchange: Exchange, request: dict[str, Any]) -> None:
        topic_filter = filter_for(str(request.get("topic", "")), self._agent.device_id)
        program = self._programs.get(exchange.client)
        if program is None or not self._agent.inbound.unsubscribe(program, topic_filter):
            raise SubscriptionRefused(f"This connection has no subscription to {topic_filter!r}.")
        program.filters.discard(topic_filter)
        exchange.answer()

    def ack(self, exchange: Exchange, request: dict[str, Any]) -> None:
        """It has no answer, so that a program may send it and read on."""
        exchange.silent()
        run, _, number = str(request.get("message", "")).partition("-")
        program = self._programs.get(exchange.client)
        if program is not None and run == self._run and number.isascii() and number.isdigit() and len(number) < 20:
            self._agent.inbound.take(program, int(number))

    def request(self, exchange: Exchange, request: dict[str, Any]) -> None:
        """Publish, and answer with the response to it."""
        topic = self._topic(exchange, request)
        seconds = _seconds(request, "timeout_seconds", REQUEST_SECONDS_DEFAULT, REQUEST_SECONDS_MAX)
        payload = _decoded(request, "payload", "The payload")

        def send(extras: Extras, on_done: Callable[[str], None]) -> None:
            def on_accepted(failure: str) -> None:
                if failure:
                    on_done(failure)

            self._put(exchange, Message(topic, payload, 1, on_done, extras), on_accepted)

        self._requests.start(exchange, seconds, send, len(payload))

    def _topic(self, exchange: Exchange, request: dict[str, Any]) -> str:
        if self._agent.stopping:
            raise SendRefused("The agent is stopping.")
        topic = topic_for(str(request.get("topic", "")), self._agent.device_id)
        if not self._rights(exchange).may_publish(topic):
            raise Denied(f"This user may not publish to {topic!r}.", "See [[apps.client]] in agent.toml.")
        return topic

    def _response_topic(self, exchange: Exchange, template: str) -> str:
        # The responder publishes there, with its own rights, at the bidding of this user.
        topic, rights = topic_for(template, self._agent.device_id), self._rights(exchange)
        if not (rights.may_subscribe(topic) or rights.may_publish(topic)):
            raise Denied(f"This user may not have responses sent to {topic!r}.", "See [[apps.client]] in agent.toml.")
        return topic

    def _put(self, exchange: Exchange, message: Message, on_accepted: OnStored) -> None:
        """Queue a message. One user may fill half of what the others leave of the outbox, and have one message in any
        case; its owner all of it."""
        outbox, mine = self._agent.outbox, self._queued[exchange.client.peer.uid]
        size = outbox.size_of(message)
        uid = exchange.client.peer.uid
        keeps_to_share = is_within_share(uid, outbox.messages_max, len(outbox), mine.messages) and is_within_share(
            uid, outbox.size_max, outbox.size, mine.size, size
        )
        if mine.messages and not keeps_to_share:
            raise SendRefused(f"This user's share of the outbox is full; its messages that wait: {mine.messages}.")
        tell = message.on_done

        def on_done(failure: str) -> None:
            mine.count(size, -1)
            if tell is not None:
                tell(failure)

        def on_stored(failure: str) -> None:
            if failure:
                mine.count(size, -1)
            on_accepted(failure)

        mine.count(size, 1)
        try:
            outbox.put(replace(message, on_done=on_done), on_stored)
        except SendRefused:
            mine.count(size, -1)
            raise

    def _rights(self, exchange: Exchange) -> Rights:
        return self._access.rights(exchange.client.peer)


def _ttl(request: dict[str, Any]) -> int | None:
    ttl = request.get("ttl")
    if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int) or not 1 <= ttl <= TTL_SECONDS_MAX):
        raise SendRefused(f"The time to live must be a number of seconds from 1 to {TTL_SECONDS_MAX}.")
    return ttl


def _decoded(request: dict[str, Any], key: str, what: str) -> bytes:
    try:
        return base64.b64decode(str(request.get(key, "")), validate=True)
    except (binascii.Error, ValueError):  # the latter: not ASCII
        raise SendRefused(f"{what} is not base64.") from None


def _seconds(request: dict[str, Any], key: str, default: float, most: float) -> float:
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise SendRefused(f"{key} must be a number from 0 to {most:g}.")
    return float(value)
