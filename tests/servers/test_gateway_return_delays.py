"""Who is closed again and again for one cause waits, each time longer; nobody else does."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.changes import Change
from fleet.domain.credential import Credential, CredentialState
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttRules, OnDenied
from fleet.domain.writes import AddCredential
from fleet.servers.gateway import Limits, close_reasons
from fleet.servers.gateway.limits.return_delays import CAUSES, ENTRIES_MAX, FORGOTTEN_SECONDS, ReturnDelays
from fleet.wire.mqtt.codes import V5, V311
from fleet.wire.mqtt.connect import Connect, Will, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, encode_publish
from tests.servers.gateway_fixtures import GatewayHarness, credential, open_gateway, operator, populate, refused
from tests.waiting import PATIENCE_SECONDS, until

ONE, OTHER = b"1" * 32, b"2" * 32


def test_the_delay_grows_from_the_second_close_on_and_is_bounded() -> None:
    delays, found = ReturnDelays(5.0), []
    for n in range(70):
        found.append(delays.seconds(ONE, n))
        delays.on_close(ONE, "protocol-error", n)
    assert found == [0.0, 0.0, 1.0, 2.0, 4.0, *[5.0] * 65]
    assert delays.seconds(OTHER, 70) == 0.0
    assert delays.seconds(None, 70) == 0.0


def test_it_is_forgotten_after_a_while() -> None:
    delays = ReturnDelays(5.0)
    for _ in range(4):
        delays.on_close(ONE, "protocol-error", 10.0)
    assert delays.seconds(ONE, 10.0 + FORGOTTEN_SECONDS - 0.1) == 4.0
    assert delays.seconds(ONE, 10.0 + FORGOTTEN_SECONDS) == 0.0
    delays.on_close(ONE, "protocol-error", 10.0 + FORGOTTEN_SECONDS)
    assert delays.seconds(ONE, 10.0 + FORGOTTEN_SECONDS) == 0.0


def test_another_cause_is_counted_anew() -> None:
    delays = ReturnDelays(5.0)
    for code in ("protocol-error", "malformed", "protocol-error"):
        delays.on_close(ONE, code, 1.0)
        assert delays.seconds(ONE, 1.0) == 0.0
    delays.on_close(ONE, "protocol-error", 1.0)
    assert delays.seconds(ONE, 1.0) == 1.0


@pytest.mark.parametrize(("code", "lived"), [("client-disconnected", 0.0), ("client-gone", 5.1), ("taken-over", 5.1)])
def test_a_session_that_ended_well_begins_the_count_anew(code: str, lived: float) -> None:
    delays = ReturnDelays(5.0)
    for _ in range(4):
        delays.on_close(ONE, "client-id-mismatch", 1.0)
        delays.on_close(OTHER, "client-id-mismatch", 1.0)
    delays.on_close(ONE, code, 2.0, lived=lived)
    assert (delays.seconds(ONE, 2.0), delays.seconds(OTHER, 2.0)) == (0.0, 4.0)
    delays.on_close(ONE, "client-id-mismatch", 3.0)
    assert delays.seconds(ONE, 3.0) == 0.0


@pytest.mark.parametrize(("code", "lived"), [("client-gone", 5.0), ("taken-over", 0.0), ("open-timeout", None)])
def test_a_session_that_did_not_leaves_the_count(code: str, lived: float | None) -> None:
    delays = ReturnDelays(5.0)
    for _ in range(2):
        delays.on_close(ONE, "client-id-mismatch", 1.0)
        delays.on_close(ONE, code, 1.0, lived=lived)
    assert delays.seconds(ONE, 1.0) == 1.0


def test_a_close_after_a_long_life_is_the_first() -> None:
    delays = ReturnDelays(5.0)
    for _ in range(3):
        delays.on_close(ONE, "protocol-error", 1.0, lived=5.1)
    assert delays.seconds(ONE, 1.0) == 0.0


@pytest.mark.parametrize("code", ["will-refused", "will-quota", "malformed-connect", "auth-method"])
def test_a_connect_that_is_refused_for_what_is_in_it_counts(code: str) -> None:
    delays = ReturnDelays(5.0)
    for _ in range(2):
        delays.on_close(ONE, code, 1.0)
    assert delays.seconds(ONE, 1.0) == 1.0


@pytest.mark.parametrize("code", ["client-gone", "taken-over", "shutting-down", "device-suspended", "feed-down"])
def test_what_a_device_has_no_part_in_counts_for_nothing(code: str) -> None:
    assert code not in CAUSES
    delays = ReturnDelays(5.0)
    for _ in range(3):
        delays.on_close(ONE, code, 1.0)
        delays.on_close(None, "protocol-error", 1.0)
    assert delays.seconds(ONE, 1.0) == 0.0


def test_the_table_is_bounded_and_the_longest_quiet_goes_first() -> None:
    delays = ReturnDelays(5.0)
    for _ in range(2):
        delays.on_close(ONE, "malformed", 1.0)
        delays.on_close(OTHER, "malformed", 1.0)
    delays.on_close(ONE, "malformed", 1.0)
    for n in range(ENTRIES_MAX - 1):
        delays.on_close(n.to_bytes(32, "big"), "malformed", 1.0)
    assert (delays.seconds(OTHER, 1.0), delays.seconds(ONE, 1.0)) == (0.0, 2.0)


async def closed(h: GatewayHarness, held: Credential, packet: bytes, cause: str, times: int) -> None:
    for n in range(times):
        wire, _ = await h.live(held, V311)
        wire.send(packet)
        await wire.until_closed()
        assert h.gateway.stats[f"mqtt.session.{cause}"] == n + 1


async def test_connack_waits_after_two_closes_for_one_cause(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.6)) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        await h.set_model(rules=ModelRules(mqtt=MqttRules(OnDenied.CLOSE)))
        denied = encode_publish(Publish("devices/cam-2/up/t", b"x"), V311)
        await closed(h, one, denied, close_reasons.PUBLISH_REFUSED.code, 2)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        waiting = asyncio.create_task(h.live(one, V311))
        await h.live(two, V311)
        assert not waiting.done()
        await waiting
        assert loop.time() - began >= 0.3


async def test_a_refusal_waits_too_and_an_event_still_closes_at_once(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (one,) = await populate(h.registry, "cam-1")
        bad = Will("devices/cam-2/up/t", b"x")
        for n in range(2):
            await h.connect(one, V5, will=bad)
            assert h.gateway.stats["mqtt.connect.will-refused"] == n + 1
        for _ in range(3):  # to the longest delay
            h.gateway.context.return_delays.on_close(one.fingerprint, "will-refused", asyncio.get_running_loop().time())
        denied = asyncio.create_task(h.connect(one, V5, will=bad))
        await until(lambda: h.gateway.context.open_sessions.of_device("cam-1"))
        (session,) = h.gateway.context.open_sessions.of_device("cam-1")
        session.close(close_reasons.DEVICE_ENDED)
        _, connack = await denied
        assert connack.code == 0x8A
        assert h.gateway.stats["mqtt.connect.will-refused"] == 2


async def test_a_good_session_ends_the_delays_and_a_delay_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fleet.gateway")
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.6)) as h:
        (one,) = await populate(h.registry, "cam-1")
        for n in range(2):
            await h.connect(one, client_id="cam-2")
            assert h.gateway.stats["mqtt.connect.client-id-mismatch"] == n + 1
        for n in range(2):
            wire, _ = await h.live(one)
            assert h.gateway.stats["mqtt.delay.applied"] == 1  # of the first of the two
            wire.send(b"\xe0\x00")
            await wire.until_closed()
            assert h.gateway.stats["mqtt.session.client-disconnected"] == n + 1
    accepted = [line for line in caplog.messages if line.endswith("code=ok") and "mqtt.connect" in line]
    assert ["delayed_ms=300" in line for line in accepted] == [True, False]
    assert sum("delayed_ms" in line for line in caplog.messages) == 1


async def test_a_refusal_that_waited_shows_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fleet.gateway")
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.6)) as h:
        (one,) = await populate(h.registry, "cam-1")
        for _ in range(3):
            wire = await h.dial(one)
            wire.send(AUTH)
            await wire.until_closed()
        assert h.gateway.stats["mqtt.connect.auth-method"] == 3
    shown = ["delayed_ms=300" in line for line in caplog.messages if "mqtt.connect" in line]
    assert shown == [False, False, True]


async def test_who_leaves_while_its_connect_waits_is_not_admitted(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=1200.0)) as h:
        (one,) = await populate(h.registry, "cam-1")
        for _ in range(12):  # to the longest delay, of minutes
            h.gateway.context.return_delays.on_close(one.fingerprint, "auth-method", asyncio.get_running_loop().time())
        wire = await h.dial(one)
        wire.send(encode_connect(Connect(V5, "cam-1")) + encode_publish(Publish("devices/cam-1/up/t", b"x"), V5))
        await until(lambda: h.gateway.context.open_sessions.of_device("cam-1"))
        wire.transport.close()
        await h.count("mqtt.session.client-gone")
        assert h.gateway.sessions == 0
        assert h.gateway.stats == {"mqtt.session.client-gone": 1}


async def test_what_comes_behind_a_connect_that_waits_is_held_up_to_a_limit(tmp_path: Path) -> None:
    up = encode_publish(Publish("devices/cam-1/up/t", bytes(1000)), V311)
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.6)) as h:
        (one,) = await populate(h.registry, "cam-1")
        for _ in range(2):
            h.gateway.context.return_delays.on_close(one.fingerprint, "auth-method", asyncio.get_running_loop().time())
        wire = await h.dial(one)
        wire.send(encode_connect(Connect(V311, "cam-1")) + up * 3000)  # more than the limit of what is held
        side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
        await side.packet()
        side.send(b"\x20\x02\x00\x00")
        for _ in range(3000):
            assert (await side.packet()).encode() == up


MALFORMED = b"\x10\x0c\x00\x04MQTT\x05\x03\x00\x3c\x00\x00"
AUTH = encode_connect(Connect(V5, "cam-1", properties=((Property.AUTHENTICATION_METHOD, "SCRAM"),)))
NO_PACKETS = encode_connect(Connect(V5, "cam-1", properties=((Property.RECEIVE_MAXIMUM, 0),)))
UNKNOWN = b"\x10\x0a\x00\x04MQTT\x06\x02\x00\x3c"


@pytest.mark.parametrize(
    ("packet", "code"), [(MALFORMED, "malformed-connect"), (AUTH, "auth-method"), (NO_PACKETS, "protocol-error")]
)
async def test_a_refusal_before_admission_waits_too(tmp_path: Path, packet: bytes, code: str) -> None:
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.6)) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        for n in range(2):
            wire = await h.dial(one)
            wire.send(packet)
            assert len(await wire.until_closed()) == 1
            assert h.gateway.stats[f"mqtt.connect.{code}"] == n + 1
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        wire = await h.dial(one)
        wire.send(packet + bytes(1000))  # what comes behind is held, and not read
        other = await h.dial(two)
        other.send(packet)
        assert len(await other.until_closed()) == 1  # at once
        assert not wire.raw
        assert len(await wire.until_closed()) == 1
        assert loop.time() - began >= 0.3
        assert h.gateway.stats[f"mqtt.connect.{code}"] == 4


async def test_an_event_ends_a_refusal_that_waits(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (one,) = await populate(h.registry, "cam-1")
        for _ in range(5):
            h.gateway.context.return_delays.on_close(one.fingerprint, "auth-method", asyncio.get_running_loop().time())
        wire = await h.dial(one)
        wire.send(AUTH)
        await until(lambda: h.gateway.context.open_sessions.of_device("cam-1"))
        (session,) = h.gateway.context.open_sessions.of_device("cam-1")
        session.close(close_reasons.DEVICE_ENDED)
        assert await refused(wire, V5) == 0x8A
        assert h.gateway.stats == {"mqtt.session.device-ended": 1}


async def test_a_version_that_is_not_supported_is_refused_at_once(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (one,) = await populate(h.registry, "cam-1")
        for _ in range(5):
            h.gateway.context.return_delays.on_close(
                one.fingerprint, "malformed-connect", asyncio.get_running_loop().time()
            )
            wire = await h.dial(one)
            wire.send(UNKNOWN)
            await wire.until_closed()
        assert h.gateway.context.return_delays.seconds(one.fingerprint, asyncio.get_running_loop().time()) == 5.0


async def test_a_revoked_certificate_waits_and_its_successor_does_not(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, limits=Limits(open_seconds_max=0.6)) as h:
        (old,) = await populate(h.registry, "cam-1")
        new = credential("cam-1", CredentialState.ISSUED)
        await h.registry.commit(Change(operator("populate"), (AddCredential(new),)))
        await h.live(new)
        for _ in range(2):
            await h.connect(old)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        waiting = asyncio.create_task(h.connect(old))
        await h.live(new)
        assert not waiting.done()
        _, connack = await waiting
        assert connack.code == 5
        assert loop.time() - began >= 0.3
        assert h.gateway.stats["mqtt.connect.certificate-superseded"] == 3
