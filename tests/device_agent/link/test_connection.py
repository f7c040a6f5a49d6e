"""The agent's connection with links that do what a test says: backoff, versions, proof, limits."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device_agent.config.agent_config import AgentConfig
from device_agent.config.endpoints import Endpoint
from device_agent.core import Link, Role, Setback
from device_agent.link import connection as module
from device_agent.link import tls_context
from device_agent.link.connection import STABLE_SECONDS, Connection, Down, ProofFailed, Proven, Up
from device_agent.link.delays import NETWORK_SECONDS_MIN
from device_agent.link.mqtt_link import MQTT_3, MQTT_5, Acknowledged, Connected, LinkEvent, Lost, Target
from device_agent.link.network_watch import NetworkChange
from device_agent.renewal import ENDED_SECONDS_MAX
from device_agent.spool.outbox import WINDOW_MAX
from device_agent.store.identity_store import CertificateInfo, Identity
from device_agent.store.key_store import TPM2, KeyStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE, CAP, REFUSED = 1.0, 8.0, 100.0
CONFIG = AgentConfig(
    home=Path("/nowhere"),
    key_store=KeyStore(Path("/nowhere")),
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
OTHERS = (Endpoint("second", 8883), Endpoint("third", 443, "/mqtt"))
CURRENT = Identity("slot-a", 1, INFO, Path("a/cert.pem"), Path("a/key.pem"))
CANDIDATE = Identity("slot-b", 2, INFO, Path("b/cert.pem"), Path("b/key.pem"))


class FakeLink:
    """One connection; `happen` is what it tells next."""

    def __init__(self, target: Target, make_context: Callable[[], object], protocol: int, _: object) -> None:
        self.target, self.protocol = target, protocol
        make_context()  # a link does it in its thread
        self.opened = self.closed = False
        self.local_address = ""
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

    def publish(self, topic: str, payload: bytes, qos: int, _: object = None) -> int:
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
    monkeypatch.setattr(tls_context, "client_context", context)
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
    assert list(world.connection.collect()) == [Acknowledged(3, ""), Proven(session_present=False)]
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
    assert down == Down(Setback.REFUSED, "taken over", True, 0.0, "h:8883", handed_over=True)
    assert world.connection.connect_at == world.now
    assert (world.connection.uses, world.connection.last_tried) == (None, None)
    assert world.tell(world.links[-1], connected()) == [Proven(session_present=False)]


def test_a_session_that_is_taken_over_is_no_refusal_of_the_certificate(world: World) -> None:
    """It waits as after one: two with one id would end each other's sessions in turn."""
    [down] = world.tell(world.up(), Lost(Setback.REFUSED, "taken over", answered=True))
    assert isinstance(down, Down)
    assert (down.retry_seconds > REFUSED, world.connection.current_is_refused) == (True, False)
    assert world.fail(Setback.REFUSED).retry_seconds >= REFUSED
    assert world.connection.current_is_refused


def test_a_key_of_another_tpm_is_no_fault_of_the_server(world: World) -> None:
    world.connection.use(replace(CONFIG, mqtt_others=OTHERS))
    assert world.fail(Setback.UNUSABLE).retry_seconds == BASE / 2  # the next server is not tried at once


def test_a_key_in_hardware_gets_its_time_to_be_loaded(world: World) -> None:
    world.connection.use(replace(CONFIG, key_store=KeyStore(Path("/nowhere"), TPM2)))
    world.connect()
    assert world.connection.connecting_until == world.now + 30.0 + tls_context.KEY_SECONDS_MAX


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
    assert world.tell(world.links[-1], connected()) == [Proven(session_present=False)]
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


# Several servers


@pytest.fixture
def three(world: World) -> World:
    world.connection = Connection(replace(CONFIG, mqtt_others=OTHERS), lambda: None, lambda: world.now, lambda: 0.5)
    return world


def hosts(world: World) -> list[str]:
    return [link.target.host for link in world.links]


def test_each_server_is_tried_before_there_is_a_wait(three: World) -> None:
    waits = [three.fail(Setback.NETWORK).retry_seconds for _ in range(7)]
    assert waits == [0.0, 0.0, 0.5, 0.0, 0.0, 1.0, 0.0]  # the backoff counts rounds
    assert hosts(three) == ["h", "second", "third"] * 2 + ["h"]
    assert three.links[2].target.path == "/mqtt"
    assert three.connection.server == "second:8883"


def test_a_round_is_of_one_identity(three: World) -> None:
    for role in (Role.CANDIDATE, Role.CURRENT):
        before = three.connection.last_tried
        for _ in range(2):
            three.fail(Setback.UNTRUSTED, role)
            assert three.connection.last_tried is before
        three.fail(Setback.UNTRUSTED, role)
        assert three.connection.last_tried is role


def test_a_refusal_is_waited_for_and_then_another_server_is_asked(three: World) -> None:
    assert three.fail(Setback.REFUSED).retry_seconds >= REFUSED
    three.connect()
    assert hosts(three) == ["h", "second"]


def test_a_candidate_is_proven_where_the_session_is(three: World) -> None:
    three.fail(Setback.NETWORK)
    three.up()
    three.connection.prove(CANDIDATE, True)
    assert hosts(three) == ["h", "second", "second"]
    assert three.connection.server == "second:8883"


def test_settings_that_are_read_again_move_nothing_that_has_not_changed(three: World) -> None:
    connection, config = three.connection, replace(CONFIG, mqtt_others=OTHERS)
    three.fail(Setback.NETWORK)
    link = three.up()
    connection.use(replace(config, renew_at_fraction=0.6))
    connection.prove(CANDIDATE, True)
    assert hosts(three) == ["h", "second", "second"]  # where the session is
    connection.drop_proof()
    three.tell(link, Lost(Setback.NETWORK, "why", True, True))
    due = connection.connect_at
    connection.use(config)
    assert connection.connect_at == due == three.now + 0.5
    connection.use(replace(config, retry_cap_seconds=CAP / 2))
    assert connection.connect_at == 0.0
    three.fail(Setback.NETWORK)
    connection.use(replace(CONFIG, mqtt_others=OTHERS[1:]))
    three.connect()
    assert hosts(three)[3:] == ["second", "h"]


def test_after_a_loss_the_same_server_is_tried_first(three: World) -> None:
    three.fail(Setback.NETWORK)
    link = three.up()
    [down] = three.tell(link, Lost(Setback.NETWORK, "why", True, True))
    assert isinstance(down, Down)
    assert down.retry_seconds == 0.5
    three.connect()
    assert hosts(three) == ["h", "second", "second"]


# Restarts, and changes of the network


def restarted(world: World, home: Path) -> float:
    """Seconds until the first attempt of a start in `home`."""
    world.connection = Connection(replace(CONFIG, home=home), lambda: None, lambda: world.now, lambda: 0.5)
    world.connection.follow(IDENTIFIED, None)
    return max(0.0, world.connection.connect_at - world.now)


IDENTIFIED = replace(CURRENT, certificate=replace(INFO, fingerprint="0f" * 32))


def test_a_restart_loop_backs_off_as_failures_do(world: World, tmp_path: Path) -> None:
    assert [restarted(world, tmp_path) for _ in range(6)] == [0.0, 0.5, 1.0, 2.0, 4.0, 4.0]
    world.fail(Setback.NETWORK)
    assert restarted(world, tmp_path) == 4.0
    link = world.up()
    world.now += STABLE_SECONDS
    world.tell(link)
    assert restarted(world, tmp_path) == 0.0  # after a power loss in a stable connection, too
    world.up()
    world.connection.close()
    assert restarted(world, tmp_path) == 0.0  # stopped while connected


def test_a_new_certificate_does_not_wait_for_the_failures_of_another(world: World, tmp_path: Path) -> None:
    assert [restarted(world, tmp_path) for _ in range(3)] == [0.0, 0.5, 1.0]
    other = replace(CURRENT, certificate=replace(INFO, fingerprint="1e" * 32))
    world.connection = Connection(replace(CONFIG, home=tmp_path), lambda: None, lambda: world.now, lambda: 0.5)
    world.connection.follow(other, None)
    assert world.connection.connect_at == 0.0


def test_a_network_that_is_back_ends_the_wait(world: World) -> None:
    for _ in range(4):
        world.fail(Setback.NETWORK)
    assert world.connection.connect_at == world.now + 4.0
    assert world.connection.network_changed(NetworkChange(improved=True)) is None
    assert world.connection.connect_at == world.now + NETWORK_SECONDS_MIN + 0.5  # a link that flaps is no storm
    world.now += 1.9
    world.connection.network_changed(NetworkChange(improved=True))
    assert world.connection.connect_at == pytest.approx(world.now + 0.6)


def test_the_network_has_no_part_in_a_refusal(world: World) -> None:
    world.fail(Setback.REFUSED)
    before = world.connection.connect_at
    world.connection.network_changed(NetworkChange(improved=True))
    assert world.connection.connect_at == before


def test_what_is_refused_for_good_is_tried_ever_more_rarely_over_restarts(world: World, tmp_path: Path) -> None:
    config = replace(CONFIG, home=tmp_path)
    world.connection = Connection(config, lambda: None, lambda: world.now, lambda: 0.5)
    current = replace(CURRENT, certificate=replace(INFO, fingerprint="a" * 64))
    world.connection.follow(current, None)
    waits = [world.fail(Setback.ENDED).retry_seconds - REFUSED for _ in range(20)]
    assert waits[:5] == [0.5, 1, 2, 4, 8]
    assert waits[-1] == ENDED_SECONDS_MAX / 2
    world.connection = Connection(config, lambda: None, lambda: world.now, lambda: 0.5)
    world.connection.follow(current, None)
    assert world.connection.connect_at == world.now + REFUSED + ENDED_SECONDS_MAX / 2
    world.fail(Setback.ENDED)
    world.connection.network_changed(NetworkChange(improved=True))
    assert world.connection.connect_at == world.now + REFUSED + 0.5  # another network, once a while
    world.connection.retry_if_ended()
    assert world.connection.connect_at == world.now
    assert world.fail(Setback.ENDED).retry_seconds == REFUSED + 0.5
    world.fail(Setback.ENDED)
    world.connection.follow(replace(CURRENT, generation=7), None)
    assert world.connection.connect_at == 0.0
    assert world.fail(Setback.ENDED).retry_seconds == REFUSED + 0.5


def test_a_refused_candidate_is_no_end(world: World) -> None:
    assert world.fail(Setback.ENDED, Role.CANDIDATE).retry_seconds < BASE


def test_an_address_that_is_gone_takes_its_connection_along(world: World) -> None:
    link = world.up()
    link.local_address = "10.0.0.7"
    assert world.connection.network_changed(NetworkChange(gone=frozenset({"10.0.0.8"}))) is None
    assert world.connection.state is Link.UP
    down = world.connection.network_changed(NetworkChange(improved=True, gone=frozenset({"10.0.0.7"})))
    assert down is not None
    assert "no longer has the address" in down.reason
    assert link.closed


@pytest.mark.parametrize("outage_seconds", [20, 120, 3600])
def test_a_thousand_agents_return_from_an_outage_without_a_peak(
    outage_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In virtual time, with the real backoff: all are cut off in one moment, and come back to a server that takes all.

    Their attempts in any one second are few beside what arriving in step would be: a thousand.
    """
    monkeypatch.setattr(tls_context, "client_context", lambda *_, **__: object())
    links: list[FakeLink] = []

    def new_link(*given: object) -> FakeLink:
        links.append(FakeLink(*given))  # type: ignore[arg-type]
        return links[-1]

    monkeypatch.setattr(module, "MqttLink", new_link)
    rng = random.Random(7)
    config = replace(CONFIG, retry_base_seconds=1.0, retry_cap_seconds=120.0)
    attempts: Counter[int] = Counter()
    returned: Counter[int] = Counter()
    for _ in range(1000):
        world = World()
        world.links = links
        world.now = 0.0
        world.connection = Connection(config, lambda: None, lambda world=world: world.now, rng.random)  # type: ignore[misc]
        link = world.up()
        world.now = 1000.0
        world.tell(link, Lost(Setback.NETWORK, "outage", True, True))
        while (at := world.connection.connect_at - 1000.0) < outage_seconds:
            world.now = world.connection.connect_at
            attempts[int(at)] += 1
            world.fail(Setback.NETWORK)
        returned[int(at - outage_seconds)] += 1
    assert max(returned) <= 121
    peak = max(returned.values())
    assert peak <= 1000 * 3 / min(outage_seconds, 120) + 15, returned
    # Once the first retries are over, the server is not knocked at in step during the outage either.
    assert max(count for second, count in attempts.items() if second >= 8) <= 200, attempts


def test_after_a_temporary_refusal_one_message_tries_after_a_growing_pause(world: World) -> None:
    link = world.up()
    quota = Acknowledged(1, "Quota exceeded", is_temporary=True)
    pauses = []
    for _ in range(10):
        assert world.connection.in_flight_max > 0
        world.tell(link, quota, quota, Acknowledged(2, ""))  # of one window: they count once
        begin = world.now
        while world.connection.in_flight_max == 0:
            world.now += 0.5
        pauses.append(world.now - begin)
        assert world.connection.in_flight_max == 1
    assert pauses[:4] == [3.5, 6.0, 11.0, 21.0]
    assert pauses[-1] == 151.0
    world.tell(link, Acknowledged(3, ""))
    assert world.connection.in_flight_max == WINDOW_MAX
    world.tell(link, quota)
    assert (world.connection.in_flight_max, world.connection.window) == (0, WINDOW_MAX)
