"""The Python API for programs on the device: asyncio, over the control socket of the running agent.

    async with Agent("/var/lib/cam-7") as agent:
        await agent.publish("devices/{id}/up/started", b"")
        async for message in agent.subscribe("devices/{id}/down/#"):
            ...

It needs the standard library alone. When the agent restarts, it connects again and restores its subscriptions.
"""

import asyncio
import base64
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_agent.apps.channel import Channel
from device_agent.errors import AgentError, NotRunning, RequestFailed, SubscriptionRefused
from fleet.wire.topic_filters import matches

QUEUED_MAX = 1000  # messages of one subscription; only those of QoS 0 can become so many
_ANSWER_SECONDS = 5.0  # for the agent's own part of a request


@dataclass(frozen=True, slots=True)
class Identity:
    """The device's certificate in use, and its files."""

    device_id: str
    serial: str
    not_after: datetime
    certificate: Path
    key: Path
    ca: Path


@dataclass(slots=True)
class Message:
    """A message from the fleet. It counts as taken with `ack`, or when its iterator is asked for the next one."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    response_topic: str
    """Where a response is expected; "" for none, and always over MQTT 3.1.1."""
    correlation: bytes
    user: tuple[tuple[str, str], ...]
    """User properties (MQTT 5.0, 3.3.2.3.7)."""
    _agent: "Agent" = field(repr=False)
    _number: str = field(repr=False)
    _takers: int = field(default=0, repr=False)
    """Subscriptions that have not taken it yet."""

    def ack(self) -> None:
        """It is dealt with: the agent acknowledges it to the server, and does not give it to others again."""
        self._agent._take(self._number)

    def _settled(self) -> None:
        self._takers -= 1
        if self._takers == 0:
            self.ack()

    async def respond(self, payload: bytes | str, *, timeout: float = 30.0) -> None:
        """Answer a request. One whose answer is refused counts as taken: it would be refused again.

        Raises: RequestFailed if it asks for no response; as `Agent.publish`.
        """
        if not self.response_topic:
            raise RequestFailed("This message has no response topic: it is no request, or came over MQTT 3.1.1.")
        options = {"wait": True, "correlation": _encoded(self.correlation)}
        try:
            await self._agent._send(self.response_topic, payload, timeout, options)
        except AgentError:
            self.ack()
            raise


class Subscription:
    """Messages of one topic filter, one after the other: an asynchronous iterator, and a context that ends it.

    Raises: SubscriptionRefused if the server, or the agent, refuses it, now or later; Denied.
    """

    def __init__(self, agent: "Agent", topic_filter: str, qos: int, keep_seconds: float) -> None:
        self.topic_filter = topic_filter
        self._agent = agent
        self.asked = {"do": "subscribe", "topic": topic_filter, "qos": qos, "keep_seconds": keep_seconds}
        self._queue: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._last: Message | None = None
        self._failure: AgentError | None = None
        self._open = False

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(taken=kind is None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        self._settle()
        if not self._open:
            await self._start()
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        self._last = self._queue.popleft()
        return self._last

    async def close(self, *, taken: bool = True) -> None:
        """Unsubscribe; `taken`: whether the message given last is dealt with."""
        if taken:
            self._settle()
        if self._open:
            self._open = False
            with contextlib.suppress(AgentError):
                await self._agent._close(self)

    async def _start(self) -> None:
        self._open = True
        try:
            await self._agent._open(self)
        except BaseException:
            self._open = False
            raise

    def _settle(self) -> None:
        if self._last is not None:
            self._last._settled()
            self._last = None

    def _put(self, message: Message) -> None:
        if message.qos == 0 and len(self._queue) >= QUEUED_MAX:
            return
        self._queue.append(message)
        self._changed.set()

    def _fail(self, failure: AgentError) -> None:
        self._failure = failure
        self._changed.set()


class Agent:
    """The running agent of `home`, or of DEVICE_HOME. Use it in an `async with` block.

    `start_seconds`: how long an agent that is not running yet is waited for. Raises: NotRunning.
    """

    def __init__(self, home: str | Path | None = None, *, start_seconds: float = 10.0) -> None:
        found = home if home is not None else os.environ.get("DEVICE_HOME")
        if found is None:
            raise NotRunning("There is no device's home.", "Pass it, or set DEVICE_HOME.")
        self.home = Path(found).absolute()
        self.device_id = ""
        """Known once it is entered."""
        self._start_seconds = start_seconds
        self._channel = Channel(self.home, self._on_event, self._restore)
        self._subscriptions: list[Subscription] = []
        self._held: set[str] = set()
        """Messages that are given out, and not taken: after a new connection they may come again."""

    async def __aenter__(self) -> Self:
        await self._channel.open(self._start_seconds)
        try:
            self.device_id = str((await self._channel.ask({"do": "hello"}, _ANSWER_SECONDS))["device_id"])
        except BaseException:
            await self._channel.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:  # what was given last is dealt with
            for subscription in self._subscriptions:
                subscription._settle()
        await self._channel.close()

    async def publish(
        self,
        topic: str,
        payload: bytes | str,
        *,
        qos: int = 1,
        ttl: int | None = None,
        wait: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """Publish; `{id}` in the topic is the device id. Returns once the server has acknowledged it, or without
        `wait` once the agent has it. After `ttl` seconds it is not sent any more. It may arrive twice if the agent
        restarts meanwhile.

        Raises: SendRefused, Denied; TimedOut: its message says what is full; an agent that has it delivers it later.
        """
        options = {"qos": qos, "wait": wait} | ({"ttl": ttl} if ttl is not None else {})
        await self._send(topic, payload, timeout, options)

    def subscribe(self, topic_filter: str, *, qos: int = 1, keep_seconds: float = 60.0) -> Subscription:
        """The messages of a topic filter. Should this program end without closing it, the agent keeps the subscription
        and its messages for `keep_seconds`."""
        return Subscription(self, topic_filter, qos, keep_seconds)

    async def request(
        self,
        topic: str,
        payload: bytes | str,
        *,
        timeout: float = 30.0,
    ) -> bytes:
        """Publish a request, and return the payload of the response.

        Raises: RequestFailed if there is none in time, or the server speaks MQTT 3.1.1; SendRefused, Denied.
        """
        asked = {"do": "request", "topic": topic, "payload": _encoded(payload), "timeout_seconds": timeout}
        return base64.b64decode((await self._channel.ask(asked, timeout + _ANSWER_SECONDS))["payload"])

    async def respond(self, topic_filter: str, *, keep_seconds: float = 60.0) -> AsyncIterator[Message]:
        """The requests of a topic filter; answer each with its `respond`. Messages without a response topic are taken
        and left out."""
        async with self.subscribe(topic_filter, keep_seconds=keep_seconds) as messages:
            async for message in messages:
                if message.response_topic:
                    yield message

    async def identity(self) -> Identity:
        """The certificate in use. Raises: NotEnrolled, NotRunning."""
        return _identity(await self._channel.ask({"do": "identity"}, _ANSWER_SECONDS))

    async def wait_connected(self) -> None:
        """Return once the agent is connected to the server."""
        await self._channel.ask({"do": "wait-connected"}, None)

    async def wait_renewed(self) -> Identity:
        """The next certificate, once it is in use."""
        return _identity(await self._channel.ask({"do": "wait-renewed"}, None))

    # For messages and subscriptions

    async def _send(self, topic: str, payload: bytes | str, seconds: float, options: dict[str, Any]) -> None:
        await self._channel.ask({"do": "send", "topic": topic, "payload": _encoded(payload)} | options, seconds)

    async def _open(self, subscription: Subscription) -> None:
        self._subscriptions.append(subscription)
        try:
            await self._channel.ask(subscription.asked, None)
        except BaseException:
            self._forget(subscription)
            raise

    async def _close(self, subscription: Subscription) -> None:
        self._forget(subscription)
        topic_filter = subscription.topic_filter
        if self._channel.is_up and all(each.topic_filter != topic_filter for each in self._subscriptions):
            await self._channel.ask({"do": "unsubscribe", "topic": topic_filter}, _ANSWER_SECONDS)

    def _forget(self, subscription: Subscription) -> None:
        with contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    def _take(self, number: str) -> None:
        if number in self._held:
            self._held.discard(number)
            self._channel.say({"do": "ack", "message": number})

    # Events

    async def _restore(self) -> None:
        await asyncio.gather(*(self._restore_one(each) for each in self._subscriptions))

    async def _restore_one(self, subscription: Subscription) -> None:
        try:
            await self._channel.ask(subscription.asked, None)
        except AgentError as error:
            self._forget(subscription)
            subscription._fail(error)

    def _on_event(self, line: dict[str, Any]) -> None:
        if line["event"] == "message":
            self._deliver(line)
        elif line["event"] == "refused":
            for each in [each for each in self._subscriptions if self._filter(each) == line["topic"]]:
                self._forget(each)
                each._fail(SubscriptionRefused(f"{line['topic']}: {line['message']}."))

    def _deliver(self, line: dict[str, Any]) -> None:
        number, topic = str(line.get("message", "")), str(line["topic"])
        if number in self._held:
            return
        filters = line.get("filters")  # one copy for each filter, over MQTT 5
        wanting = [
            each
            for each in self._subscriptions
            if matches(self._filter(each), topic) and (not filters or self._filter(each) in filters)
        ]
        message = Message(
            topic,
            base64.b64decode(line["payload"]),
            int(line["qos"]),
            bool(line["retain"]),
            str(line.get("response_topic", "")),
            base64.b64decode(line.get("correlation", "")),
            tuple((str(name), str(value)) for name, value in line.get("user", ())),
            self,
            number,
            len(wanting),
        )
        if number and wanting:
            self._held.add(number)
        for subscription in wanting:
            subscription._put(message)

    def _filter(self, subscription: Subscription) -> str:
        return subscription.topic_filter.replace("{id}", self.device_id)


def _encoded(payload: bytes | str) -> str:
    return base64.b64encode(payload.encode() if isinstance(payload, str) else payload).decode()


def _identity(answer: dict[str, Any]) -> Identity:
    return Identity(
        answer["device_id"],
        answer["serial"],
        datetime.fromisoformat(answer["not_after"]),
        Path(answer["certificate"]),
        Path(answer["key"]),
        Path(answer["ca"]),
    )
