"""Requests and their responses, without a server."""

import json
import socket
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from device_agent.apps.control_server import Client, Exchange, Peer
from device_agent.apps.inbound import Inbound
from device_agent.apps.requests import PENDING_MAX, WAITING_SIZE_MAX, Requests
from device_agent.errors import RequestFailed, SendRefused
from device_agent.link.mqtt_link import MQTT_3, MQTT_5
from device_agent.packets import Extras, Received, Subscribed

TOPIC = "devices/cam-7/down/replies"


class Payload:
    """Of a request; it can be referred to weakly."""


class World:
    """An agent that is connected, one program, and the requests."""

    def __init__(self, protocol: int, ours: socket.socket, program: socket.socket) -> None:
        self.now = 0.0
        self.connection: Any = SimpleNamespace(
            is_up=True, protocol=protocol, subscribe=self._subscribe, acknowledge=lambda _: None
        )
        self.device_id = "cam-7"
        self.inbound = Inbound(self.connection, lambda: self.now)
        self.monotonic: Callable[[], float] = lambda: self.now
        self.requests = Requests(self)
        self.sent: list[Extras] = []
        self.used: list[Payload] = []
        self._client = Client(ours)
        self._program = program
        self.subscribes = 0

    def _subscribe(self, *_: object) -> int:
        self.subscribes += 1
        return 1

    def ask(self, seconds: float = 10.0) -> None:
        self.requests.start(Exchange(self._client, {}), seconds, lambda extras, _: self.sent.append(extras))

    def ask_with(self, payload: "Payload", seconds: float) -> "Payload":
        """Ask; what is kept of the request has the payload."""
        self.requests.start(Exchange(self._client, {}), seconds, lambda *_: self.used.append(payload))
        return payload

    def grant(self, reason: str = "") -> None:
        self.inbound.subscribed(Subscribed(1, (reason,)))

    def respond(self, extras: Extras, payload: bytes = b"yes") -> None:
        self.inbound.received(Received(TOPIC, payload, 1, 1, dup=False, retain=False, extras=extras))

    def answers(self) -> list[dict[str, Any]]:
        """What the program has been told since the last call."""
        try:
            return [json.loads(line) for line in self._program.recv(65536).splitlines()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def make() -> Iterator[Callable[[int], World]]:
    worlds: list[World] = []
    pairs = [socket.socketpair() for _ in range(2)]
    for pair in pairs:
        for each in pair:
            each.setblocking(False)

    def world(protocol: int) -> World:
        worlds.append(World(protocol, *pairs[len(worlds)]))
        return worlds[-1]

    yield world
    for pair in pairs:
        for each in pair:
            each.close()


def test_each_response_finds_its_request(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)
    world.ask()
    world.ask(2.5)
    assert world.sent == []  # nobody could hear the response yet
    world.grant()
    first, second = world.sent
    assert (first.response_topic, first.expiry_seconds, second.expiry_seconds) == (TOPIC, 10, 3)
    world.respond(Extras(correlation=b"of nobody"))
    world.respond(second, b"\xff")
    world.respond(second, b"again")
    assert world.answers() == [{"ok": True, "topic": TOPIC, "payload": "/w=="}]
    assert world.requests.seconds_left() == 10.0
    world.now = 10.0
    world.requests.tick()
    (late,) = world.answers()
    assert (late["ok"], late["code"], late["message"]) == (
        False,
        "request-failed",
        "There was no response within 10 s.",
    )
    world.respond(first)
    assert world.answers() == []


def test_without_mqtt_5_and_without_the_right_to_hear_responses_it_is_refused(make: Callable[[int], World]) -> None:
    older, denied = make(MQTT_3), make(MQTT_5)
    older.ask()
    older.grant()
    assert "MQTT 3.1.1" in older.answers()[0]["message"]
    denied.ask()
    denied.grant("not allowed")
    assert f"Responses to {TOPIC} cannot be received: not allowed." in denied.answers()[0]["message"]
    assert older.sent == denied.sent == []


def test_a_restored_subscription_that_is_refused_ends_them(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)
    world.ask()
    world.grant()
    world.inbound.came_up(session_present=False)
    world.grant("no longer")
    assert "no longer" in world.answers()[0]["message"]


def test_requests_are_bounded_and_those_of_a_closed_program_forgotten(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)
    for _ in range(PENDING_MAX):
        world.ask()
    with pytest.raises(RequestFailed):
        world.ask()
    world.close()
    world.requests.tick()
    world.ask()


def test_what_the_outbox_refuses_is_told(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)

    def full(*_: object) -> None:
        raise SendRefused("The outbox is full.")

    world.requests.start(Exchange(world._client, {}), 1.0, full)
    world.grant()
    assert world.answers()[0]["message"] == "The outbox is full."


def test_one_subscribe_serves_all_requests_of_a_slow_link(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)
    for _ in range(5):
        world.ask()
    assert (world.subscribes, world.sent) == (1, [])
    world.grant()
    assert (world.subscribes, len(world.sent)) == (1, 5)


def test_a_request_that_has_ended_keeps_nothing(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)
    world.connection.is_up = False
    kept = [weakref.ref(world.ask_with(Payload(), 0)) for _ in range(100)]
    world.requests.tick()
    assert [each() for each in kept] == [None] * 100


def test_a_user_that_asks_for_all_requests_leaves_some_to_others(make: Callable[[int], World]) -> None:
    world = make(MQTT_5)

    def asks(uid: int, size: int) -> int:
        world._client.peer = Peer(uid, uid)
        count = 0
        with pytest.raises(RequestFailed):
            while True:
                exchange = Exchange(world._client, {})
                world.requests.start(exchange, 10.0, lambda extras, _: world.sent.append(extras), size)
                count += 1
        return count

    assert [asks(4001, 0), asks(4002, 0), asks(4001, 0)] == [PENDING_MAX // 2, PENDING_MAX // 4, 0]
    world.now = 10.0
    world.requests.tick()
    assert [asks(4001, WAITING_SIZE_MAX // 8), asks(4002, WAITING_SIZE_MAX // 8)] == [4, 2]
    world.grant()
    assert asks(4001, WAITING_SIZE_MAX // 8) == 4  # what is sent is the outbox's
