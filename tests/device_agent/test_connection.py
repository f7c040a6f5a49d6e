"""The agent's connection with links that do what a test says: backoff, versions, proof, limits."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device_agent import connection as module
from device_agent.agent_config import AgentConfig
from device_agent.connection import STABLE_SECONDS, Connection, Down, ProofFailed, Proven, Up
from device_agent.core import Link, Role, Setback
from device_agent.identity_store import CertificateInfo, Identity
from device_agent.mqtt_link import MQTT_3, MQTT_5, Acknowledged, Connected, LinkEvent, Lost, Target
from device_agent.outbox import WINDOW_MAX
from fleet.est_client.errors import BadCredentials

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE, CAP, REFUSED = 1.0, 8.0, 100.0
CONFIG = AgentConfig(
    home=Path("/home"),
    device_id="cam-7",
    hardware_serial="",
    est_url="https://h",
    mqtt_host="h",
    mqtt_port=8883,
    ca_file=Path("/home/ca.pem"),
    keepalive_seconds=60,
    session_expiry_seconds=600,
    renew_at_fraction=0.5,
    retry_base_seconds=BASE,
    retry_cap_seconds=CAP,
    refused_retry_seconds=REFUSED,
    outbox_messages_max=10,
)
INFO = CertificateInfo("cam-7", "1", "fp", "CN=test", NOW, NOW)
CURRENT = Identity("slot-a", 1, INFO, Path("a/cert.pem"), Path("a/key.pem"))
CANDIDATE = Identity("slot-b", 2, INFO, Path("b/cert.pem"), Path("b/key.pem"))


class FakeLink:
    """One connection; `happen` is what it tells next."""

    def __init__(self, target: Target, context: object, protocol: int, wake: Callable[[], None]) -> None:
        self.target, self.context, self.protocol = target, context, protocol
        self.opened = self.closed = False
        self.ticks = 0
        self.happen: list[LinkEvent] = []
        self.published: list[tuple[str, bytes, int]] = []

    def open(self) -> None:
        self.opened = True

    def close(self) -> None:
        self.closed = True

    def tick(self) -> None:
        self.ticks += 1

    def events(self) -> list[LinkEvent]:
        events, self.happen = self.happen, []
        return events

    def publish(self, topic: str, payload: bytes, qos: int) -> int:
        self.published.append((topic, payload, qos))
        return len(self.published)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.links: list[FakeLink] = []
        self.contexts: list[tuple[object, ...]] = []
        self.connection = Connection(CONFIG, lambda: None, lambda: self.now, lambda: 0.5)

    @property
    def open_links(self) -> list[object]:
        return list(self.connection.links)

    def connect(self, role: Role = Role.CURRENT) -> FakeLink:
        self.connection.connect(CURRENT if role is Role.CURRENT else CANDIDATE, role, True)
        return self.links[-1]

    def up(self, event: Connected | None = None) -> FakeLink:
        link = self.connect()
        assert self.tell(link, event or connected()) == [Up(False)]
        return link

    def tell(self, link: FakeLink, *events: LinkEvent) -> list[object]:
        link.happen += events
        return list(self.connection.collect())

    def fail(
        self, setback: Setback, role: Role = Role.CURRENT, *, answered: bool = False, reached: bool = False
    ) -> Down:
        """One attempt that fails."""
        [event] = self.tell(self.connect(role), Lost(setback, "why", answered, reached))
        assert isinstance(event, Down)
        return event


def connected(receive_maximum: int = 65535, packet_size_max: int | None = None) -> Connected:
    return Connected(False, receive_maximum, packet_size_max)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    def link(*given: object) -> FakeLink:
        world.links.append(FakeLink(*given))  # type: ignore[arg-type]
        return world.links[-1]

    def context(ca_file: Path, files: tuple[Path, Path], *, check_time: bool) -> object:
        world.contexts.append((ca_file, files, check_time))
        return object()

    monkeypatch.setattr(module, "MqttLink", link)
    monkeypatch.setattr(module, "client_context", context)
    return world


def test_an_attempt_is_made_with_the_identity_and_its_files(world: World) -> None:
    world.connection.connect(CANDIDATE, Role.CANDIDATE, False)
    [link] = world.links
    assert link.opened
    assert link.target == Target("h", 8883, "cam-7", 60, 600)
    assert world.contexts == [(CONFIG.ca_file, CANDIDATE.files, False)]
    connection = world.connection
    assert (connection.state, connection.uses, connection.identity) == (Link.CONNECTING, Role.CANDIDATE, CANDIDATE)
    assert connection.connecting_until == world.now + 30.0


def test_failures_back_off_to_the_cap_with_full_jitter(world: World) -> None:
    waits = [world.fail(Setback.NETWORK).retry_seconds for _ in range(6)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]  # half of 1, 2, 4, 8 and the cap
    assert world.connection.connect_at == world.now + 4.0
    assert world.connection.state is Link.DOWN
    assert world.connection.last_tried is Role.CURRENT
    assert (world.connection.uses, world.connection.identity) == (None, None)
    assert all(link.closed for link in world.links)


@pytest.mark.parametrize("setback", [Setback.NETWORK, Setback.UNTRUSTED])
def test_only_a_refusal_waits_long(world: World, setback: Setback) -> None:
    assert world.fail(setback).retry_seconds < BASE
    assert world.fail(Setback.REFUSED).retry_seconds == REFUSED + BASE


def test_a_refused_candidate_is_followed_by_the_current_one_soon(world: World) -> None:
    assert world.fail(Setback.REFUSED, Role.CANDIDATE).retry_seconds < BASE
    assert world.connection.last_tried is Role.CANDIDATE
    assert world.fail(Setback.REFUSED, Role.CURRENT).retry_seconds > REFUSED


@pytest.mark.parametrize(("seconds", "attempt"), [(STABLE_SECONDS, 0), (STABLE_SECONDS - 0.1, 3)])
def test_a_stable_connection_resets_the_backoff(world: World, seconds: float, attempt: int) -> None:
    for _ in range(3):
        world.fail(Setback.NETWORK)
    link = world.up()
    assert world.connection.last_tried is None
    world.now += seconds
    [down] = world.tell(link, Lost(Setback.NETWORK, "gone"))
    assert isinstance(down, Down)
    assert (down.was_up, down.reason, down.handed_over) == (True, "gone", False)
    assert down.retry_seconds == min(CAP, BASE * 2**attempt) / 2
    assert world.connection.last_tried is None


def test_an_unsupported_version_is_followed_by_the_other_at_once(world: World) -> None:
    assert world.connection.protocol_name == "5.0"
    down = world.fail(Setback.PROTOCOL, answered=True, reached=True)
    assert (down.retry_seconds, world.connection.protocol, world.connection.last_tried) == (0.0, MQTT_3, None)
    assert world.connection.protocol_name == "3.1.1"
    link = world.up()
    assert link.protocol == MQTT_3
    world.tell(link, Lost(Setback.NETWORK, "gone"))
    assert world.connection.protocol == MQTT_3  # 5 was refused in so many words
    world.fail(Setback.NETWORK, reached=True)
    assert world.connection.protocol == MQTT_3
    world.fail(Setback.PROTOCOL)
    assert world.connection.protocol == MQTT_5


@pytest.mark.parametrize(
    ("reached", "answered", "protocol"),
    [
        (True, False, MQTT_3),  # closed on CONNECT without a CONNACK: perhaps it knows 3.1.1 only
        (True, True, MQTT_5),
        (False, False, MQTT_5),
    ],
)
def test_a_server_that_closes_on_connect_is_tried_in_the_other_version(
    world: World, reached: bool, answered: bool, protocol: int
) -> None:
    world.fail(Setback.NETWORK, reached=reached, answered=answered)
    assert world.connection.protocol == protocol


def test_a_refusal_says_nothing_of_the_version(world: World) -> None:
    world.fail(Setback.REFUSED, reached=True)
    assert world.connection.protocol == MQTT_5


def test_the_version_goes_back_to_5_after_a_connection(world: World) -> None:
    world.fail(Setback.NETWORK, reached=True)
    link = world.up()
    assert link.protocol == MQTT_3
    world.tell(link, Lost(Setback.NETWORK, "gone"))
    assert world.connection.protocol == MQTT_5


@pytest.mark.parametrize(("receive_maximum", "window"), [(65535, WINDOW_MAX), (5, 5), (0, 1), (1, 1), (33, 32)])
def test_the_window_is_the_smaller_of_both(world: World, receive_maximum: int, window: int) -> None:
    world.up(connected(receive_maximum))
    assert world.connection.window == window


def test_a_packet_too_large_for_the_server_is_never_sent(world: World) -> None:
    link = world.up()
    assert world.connection.publish("t", b"x" * 200_000, 0) == 1  # no limit was named
    world.tell(link, Lost(Setback.NETWORK, "gone"))
    link = world.up(connected(packet_size_max=100))
    assert world.connection.publish("t", b"x" * 80, 1) == 1
    with pytest.raises(ValueError, match="at most 100 bytes"):
        world.connection.publish("t", b"x" * 81, 1)
    assert link.published == [("t", b"x" * 80, 1)]
    world.tell(link, Lost(Setback.NETWORK, "gone"))
    with pytest.raises(RuntimeError):
        world.connection.publish("t", b"", 1)


def test_acknowledgements_of_the_old_connection_come_before_the_proof(world: World) -> None:
    old = world.up()
    world.connection.prove(CANDIDATE, True)
    new = world.links[-1]
    assert new.opened
    assert world.connection.connecting_until == world.now + 30.0
    assert world.open_links == [old, new]
    new.happen.append(connected(receive_maximum=7))
    old.happen.append(Acknowledged(3, ""))
    assert list(world.connection.collect()) == [Acknowledged(3, ""), Proven()]
    assert (old.closed, new.closed, world.open_links) == (True, False, [new])
    assert (old.ticks, new.ticks) == (2, 1)
    assert world.connection.window == 7
    assert world.connection.state is Link.UP


def test_a_proof_that_fails_leaves_the_working_connection(world: World) -> None:
    old = world.up()
    world.connection.prove(CANDIDATE, True)
    new = world.links[-1]
    assert world.tell(new, Lost(Setback.REFUSED, "no")) == [ProofFailed(Setback.REFUSED, "no")]
    assert (old.closed, new.closed, world.open_links) == (False, True, [old])
    assert world.connection.state is Link.UP


def test_the_session_may_be_taken_over_before_the_proof_is_heard(world: World) -> None:
    old = world.up()
    world.connection.prove(CANDIDATE, True)
    [down] = world.tell(old, Lost(Setback.REFUSED, "taken over"))
    assert down == Down(Setback.REFUSED, "taken over", True, 0.0, handed_over=True)
    assert world.connection.connect_at == world.now
    assert (world.connection.uses, world.connection.last_tried) == (None, None)
    assert world.tell(world.links[-1], connected()) == [Proven()]


def test_an_identity_that_cannot_be_loaded_counts_as_a_failure(world: World) -> None:
    world.connection.uses = Role.CURRENT
    down = world.connection.failed_to_start(BadCredentials("The key is gone."))
    assert (down.setback, down.reason, down.was_up) == (Setback.NETWORK, "The key is gone.", False)
    assert down.retry_seconds == BASE / 2
    assert world.fail(Setback.NETWORK).retry_seconds == BASE


def test_hanging_up_and_closing(world: World) -> None:
    link = world.connect()
    assert world.connection.hang_up("too slow").reason == "too slow"
    assert link.closed
    first, second = world.up(), None
    world.connection.prove(CANDIDATE, True)
    second = world.links[-1]
    world.connection.close()
    assert (first.closed, second.closed) == (True, True)
    assert (world.connection.state, world.open_links) == (Link.DOWN, [])


def test_a_delay_belongs_to_the_certificates_that_failed(world: World) -> None:
    connection = world.connection
    connection.follow(CURRENT, None)
    world.fail(Setback.REFUSED)
    refused_until = connection.connect_at
    connection.follow(CURRENT, None)
    assert (connection.connect_at, connection.last_tried) == (refused_until, Role.CURRENT)
    connection.follow(CURRENT, CANDIDATE)
    assert (connection.connect_at, connection.last_tried) == (0.0, None)
    world.fail(Setback.REFUSED, Role.CANDIDATE)
    soon = connection.connect_at
    for current, candidate in ((CURRENT, CANDIDATE), (CANDIDATE, None), (CURRENT, None)):
        connection.follow(current, candidate)
        assert connection.connect_at == soon > 0


def test_a_certificate_that_was_proven_is_none_that_was_never_tried(world: World) -> None:
    """Devices whose certificates were renewed since they connected do not all come back at once."""
    world.connection.follow(CURRENT, None)
    old = world.up()
    world.connection.follow(CURRENT, CANDIDATE)
    world.connection.prove(CANDIDATE, True)
    assert world.tell(world.links[-1], connected()) == [Proven()]
    assert old.closed
    assert (world.connection.uses, world.connection.identity) == (Role.CANDIDATE, CANDIDATE)
    world.connection.follow(CANDIDATE, None)
    assert world.connection.uses is Role.CURRENT
    world.tell(world.links[-1], Lost(Setback.NETWORK, "the gateway restarts"))
    world.connection.follow(CANDIDATE, None)
    assert world.connection.connect_at > world.now


def test_what_was_replaced_while_it_connects_is_not_promoted(world: World) -> None:
    world.connect(Role.CANDIDATE)
    used = []
    for candidate in (CANDIDATE, None):
        world.connection.follow(CURRENT, candidate)
        used.append(world.connection.uses)
    assert used == [Role.CANDIDATE, Role.CURRENT]
