"""Several sessions of one device, by its model: client ids beneath the device id, or of the device's own choice."""

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event
from fleet.domain.client_ids import broker_client_id, is_bound
from fleet.domain.credential import Credential, CredentialState
from fleet.domain.device import Model
from fleet.domain.errors import Refused
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import ClientIdBinding, MqttOverride, MqttRules, OnDenied
from fleet.domain.writes import AddCredential, SetModel
from fleet.mqtt_client.client import MqttVisit
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.mosquitto import Mosquitto, acl_text, mosquitto_program
from fleet.servers.gateway.events import effects
from fleet.servers.gateway.limits import kept_clients
from fleet.servers.gateway.limits.kept_clients import LATE_SECONDS, KeptClients
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.processes import mark, runs, this_process
from fleet.services import revocation
from fleet.services.admission import admit
from fleet.services.tagging import label_device
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connect, decode_connect, encode_connect
from tests.servers.gateway_fixtures import (
    MODEL,
    BrokerSide,
    GatewayHarness,
    Wire,
    credential,
    now,
    open_gateway,
    operator,
    peer_of,
    populate,
    refused,
    up,
)
from tests.servers.gateway_relay_harness import VERSIONS
from tests.servers.paho_client import Paho
from tests.waiting import PATIENCE_SECONDS

PROGRAM = mosquitto_program()
EXACT, PREFIX, ANY = ClientIdBinding


def rules(binding: ClientIdBinding, sessions_max: int = 4) -> ModelRules:
    return ModelRules(mqtt=MqttRules(client_id=binding, sessions_max=sessions_max))


async def opened(
    h: GatewayHarness, held: Credential, client_id: str, connect: Connect | None = None
) -> tuple[Wire, BrokerSide, str]:
    """Both ends of a session past CONNACK, and its client id at the broker."""
    wire = await h.dial(held)
    connect = connect or Connect(V5, client_id)
    wire.send(encode_connect(connect))
    side = await asyncio.wait_for(h.broker.sessions.get(), PATIENCE_SECONDS)
    got = decode_connect((await side.packet()).body)
    side.send(b"\x20\x03\x00\x00\x00")
    await wire.packet()
    wire.raw.clear()
    return wire, side, got.client_id


async def change(h: GatewayHarness, binding: ClientIdBinding) -> None:
    """Once more: the model as it is stored."""
    model = await h.registry.model(MODEL.name)
    assert model is not None
    changed = SetModel(replace(model, rules=rules(binding)))
    await h.registry.commit(Change(operator("model.set"), (changed,), (Event("model.changed", MODEL.name),)))


@pytest.mark.parametrize(
    ("client_id", "by_prefix", "by_any"),
    [
        ("cam-1", "cam-1", "cam-1"),
        ("cam-1/pub", "cam-1/pub", "cam-1/pub"),
        ("cam-1/" + "x" * 64, "cam-1/" + "x" * 64, "cam-1/" + "x" * 64),
        ("pub", None, "cam-1/~pub"),
        ("cam-2", None, "cam-1/~cam-2"),
        ("cam-1/", None, "~~"),
        ("cam-1/a/b", None, "~~"),
        ("cam-1/#", None, "~~"),
        ("cam-1/+", None, "~~"),
        ("cam-1/~pub", None, "~~"),
        ("cam-1/..", None, "~~"),
        ("cam-1/" + "x" * 65, None, "~~"),
        ("cam-2/pub", None, "~~"),
        ("cam-1/é", None, "~~"),
        ("cam-1/x\n", None, None),
        ("x" * 257, None, None),
        ("cam-1/" + "x" * 65_529, None, None),
    ],
)
def test_each_binding_maps_a_client_id_to_one_of_the_device(
    client_id: str, by_prefix: str | None, by_any: str | None
) -> None:
    assert broker_client_id("cam-1", client_id, EXACT) == ("cam-1" if client_id == "cam-1" else None)
    assert broker_client_id("cam-1", client_id, PREFIX) == by_prefix
    found = broker_client_id("cam-1", client_id, ANY)
    if by_any == "~~":
        assert found is not None
        assert len(found) == len("cam-1/~~") + 64
        assert found != broker_client_id("cam-2", client_id, ANY)
    else:
        assert found == by_any
    if found is not None:
        assert is_bound(found, ANY)
        assert is_bound(found, PREFIX) == (by_prefix is not None)
        assert is_bound(found, EXACT) == (client_id == "cam-1")


@VERSIONS
async def test_a_name_that_is_not_plain_is_refused_with_its_own_code(tmp_path: Path, version: int) -> None:
    names = ("a/b", "#", "+", "", "x" * 65, "x" * 65_529)
    async with open_gateway(tmp_path) as h:
        held = await populate(h.registry, *(f"cam-{number}" for number in range(len(names))))
        await h.set_model(rules=rules(PREFIX))
        for one, name in zip(held, names, strict=True):
            wire = await h.dial(one)
            wire.send(encode_connect(Connect(version, f"{one.holder}/{name}")))
            assert await refused(wire, version) == (0x85 if version == V5 else 2)
        assert h.broker.sessions.empty()
        rows = [row.entry for row in await h.registry.audit() if row.entry.action == "mqtt.connect"]
        assert {(row.subject, row.outcome) for row in rows} == {
            (f"device {one.holder}", "client-id-mismatch") for one in held
        }


async def test_sessions_of_one_device_live_side_by_side_and_end_together(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        cam, other = await populate(h.registry, "cam-1", "cam-2")
        await h.set_model(rules=rules(PREFIX))
        main, main_side, main_id = await opened(h, cam, "cam-1")
        app, app_side, app_id = await opened(h, cam, "cam-1/pub")
        bystander, _, _ = await opened(h, other, "cam-2")
        assert (main_id, app_id) == ("cam-1", "cam-1/pub")
        for wire, side in ((main, main_side), (app, app_side)):
            side.raw.clear()
            wire.send(up("cam-1", version=V5))
            await side.received(len(up("cam-1", version=V5)))
        # A second connection takes over that of its own client id alone.
        again, _, _ = await opened(h, cam, "cam-1/pub")
        assert (await app.until_closed())[0].body[0] == Reason.SESSION_TAKEN_OVER
        assert not main.closed.is_set()
        await revocation.revoke(h.registry, "cam-1", act=Act("test", now()))
        for wire in (main, again):
            (farewell,) = await wire.until_closed()
            assert farewell.body[0] == Reason.ADMINISTRATIVE_ACTION
        assert not bystander.closed.is_set()
        assert not h.gateway.context.open_sessions.of_device("cam-1")


async def test_any_client_id_is_the_devices_own_at_the_broker_and_found_by_events(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        await h.set_model(rules=rules(ANY))
        wire, _, at_broker = await opened(h, one, "cam-2")
        assert at_broker == "cam-1/~cam-2"
        neighbour, _, its_id = await opened(h, two, "cam-2")
        assert its_id == "cam-2"
        await revocation.suspend(h.registry, "cam-1", act=Act("test", now()))
        assert (await wire.until_closed())[0].body[0] == Reason.ADMINISTRATIVE_ACTION
        assert not neighbour.closed.is_set()


async def test_programs_beside_the_agent_have_a_while_to_read_the_newer_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_gateway(tmp_path) as h:
        (old,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=rules(PREFIX))
        newer = [credential("cam-1", CredentialState.ISSUED) for _ in range(2)]
        await h.registry.commit(Change(operator("renew"), (AddCredential(newer[0]),)))
        agent, _, _ = await opened(h, old, "cam-1")
        bridge, side, _ = await opened(h, old, "cam-1/bridge")
        await opened(h, newer[0], "cam-1")
        assert (await agent.until_closed())[0].body[0] == Reason.SESSION_TAKEN_OVER
        # This event is behind those of the first use.
        await h.registry.commit(Change(operator("model.set"), (), (Event("model.changed", MODEL.name),)))
        await h.count("mqtt.model.applied", 2)
        side.raw.clear()
        bridge.send(up("cam-1", version=V5))
        await side.received(len(up("cam-1", version=V5)))
        again = await h.dial(old)
        again.send(encode_connect(Connect(V5, "cam-1/bridge")))
        assert await refused(again, V5) == Reason.NOT_AUTHORIZED
        assert not bridge.closed.is_set()
        # Once it is revoked, there is nothing to wait for.
        await revocation.revoke_certificate(h.registry, old, act=Act("test", now()))
        assert (await bridge.until_closed())[0].body[0] == Reason.NOT_AUTHORIZED

        monkeypatch.setattr(effects, "SUPERSEDED_SECONDS_MAX", 0.0)
        await h.registry.commit(Change(operator("renew"), (AddCredential(newer[1]),)))
        bridge, _, _ = await opened(h, newer[0], "cam-1/bridge")
        await opened(h, newer[1], "cam-1")
        assert (await bridge.until_closed())[0].body[0] == Reason.NOT_AUTHORIZED
        assert h.gateway.stats["mqtt.session.credential-ended"] == 2


async def test_a_broker_that_gets_client_ids_as_they_are_gets_none_of_the_devices_choice(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=rules(ANY))
        assert (await admit(h.registry, peer_of(cam), "cam-1/a", now(), maps_client_id=False)).client_id == "cam-1/a"
        for client_id in ("cam-2", "a", "cam-2/a"):
            with pytest.raises(Refused, match="cam-1/NAME") as refusal:
                await admit(h.registry, peer_of(cam), client_id, now(), maps_client_id=False)
            assert refusal.value.code == "client-id-mismatch"


async def test_a_device_has_as_many_client_ids_as_its_model_allows_and_always_its_own(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, kept_filters=KeptFilters(directory=tmp_path / "kept")) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=rules(PREFIX, sessions_max=2))
        await opened(h, cam, "cam-1/a")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1/b")))
        assert await refused(wire, V5) == Reason.QUOTA_EXCEEDED
        await h.count("mqtt.connect.session-quota")
        [row] = [row.entry for row in await h.registry.audit() if row.entry.outcome == "session-quota"]
        assert (row.actor, row.action, row.subject) == ("device cam-1", "mqtt.connect", "device cam-1")
        await h.broker.sessions.get()  # the broker got nothing on it
        await opened(h, cam, "cam-1")


async def test_an_override_says_which_client_ids_and_how_many_a_device_has(tmp_path: Path) -> None:
    gold = MqttOverride("tier=gold", client_id=PREFIX, sessions_max=2, on_denied=OnDenied.CLOSE)
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=ModelRules(mqtt=MqttRules(overrides=(gold,))))

        async def tagged(*tags: tuple[str, str]) -> None:
            found = await h.registry.device("cam-1")
            assert found is not None
            await label_device(h.registry, found, tags, tuple(key for key, _ in found.tags), act=Act("test", now()))

        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1/a")))
        assert await refused(wire, V5) == Reason.CLIENT_IDENTIFIER_NOT_VALID
        await tagged(("tier", "gold"))
        named, side, _ = await opened(h, cam, "cam-1/a")
        wire = await h.dial(cam)
        wire.send(encode_connect(Connect(V5, "cam-1/b")))
        assert await refused(wire, V5) == Reason.QUOTA_EXCEEDED
        await h.broker.sessions.get()  # the broker got nothing on it
        await h.set_model(rules=ModelRules(mqtt=MqttRules(overrides=(gold,), qos_max=1)), revision=2)
        await h.count("mqtt.model.applied", 2)
        assert not named.closed.is_set()
        named.send(up("cam-1", version=V5))
        await side.received(len(up("cam-1", version=V5)))
        old, _ = await h.live(cam, V311)
        old.send(up("cam-2", version=V311))
        await old.until_closed()
        await h.count("mqtt.session.publish-refused")
        newer = credential("cam-1", CredentialState.ISSUED)
        await h.registry.commit(Change(operator("renew"), (AddCredential(newer),)))
        await opened(h, newer, "cam-1")
        await h.registry.commit(Change(operator("model.set"), (), (Event("model.changed", MODEL.name),)))
        await h.count("mqtt.model.applied", 3)
        assert not named.closed.is_set(), "it has some time to read the newer certificate"
        await tagged()
        assert (await named.until_closed())[-1].body[0] == close_reasons.POLICY_CHANGED.disconnect


def test_the_brokers_acl_is_as_wide_as_the_widest_override(tmp_path: Path) -> None:
    named = MqttOverride("tier=gold", client_id=PREFIX)
    narrow, wide = (Model("m", rules=ModelRules(mqtt=MqttRules(overrides=each))) for each in ((), (named,)))
    assert "pattern write devices/%c/up/#" in acl_text([narrow])
    assert "devices/%c/up/#" not in acl_text([wide])
    assert "topic write devices/+/up/#" in acl_text([wide])


async def test_sessions_close_that_a_changed_model_no_longer_binds(tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as h:
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=rules(ANY))
        main, _, _ = await opened(h, cam, "cam-1")
        named, _, _ = await opened(h, cam, "cam-1/a")
        chosen, _, _ = await opened(h, cam, "b")
        await change(h, PREFIX)
        assert (await chosen.until_closed())[0].body[0] == close_reasons.POLICY_CHANGED.disconnect
        assert not named.closed.is_set()
        await change(h, EXACT)
        assert (await named.until_closed())[0].body[0] == close_reasons.POLICY_CHANGED.disconnect
        assert not main.closed.is_set()


@pytest.mark.parametrize("on_disk", [True, False])
def test_client_ids_are_remembered_for_as_long_as_the_broker_may_keep_their_sessions(
    tmp_path: Path, on_disk: bool
) -> None:
    time = 1000.0
    first = KeptClients(tmp_path if on_disk else None, lambda: time)
    second = KeptClients(tmp_path, lambda: time) if on_disk else first
    assert first.begins("cam-1/a", [], 3, outlives=True)
    assert second.of_device("cam-1") == ("cam-1/a",)
    assert second.begins("cam-1/b", ["cam-1"], 3, outlives=False)
    assert not second.begins("cam-1/c", ["cam-1/b", "cam-1"], 3, outlives=False)
    assert second.begins("cam-1", ["cam-1/b"], 3, outlives=True)
    assert second.begins("cam-1/a", ["cam-1/b"], 3, outlives=True)
    first.ended("cam-1/a", 60)
    first.ended("cam-1/b", 0)
    assert second.of_device("cam-1") == ("cam-1/a",)
    time += 60 + LATE_SECONDS
    assert second.of_device("cam-1") == ()
    assert second.begins("cam-1/c", ["cam-1/b"], 3, outlives=True)
    assert second.of_device("cam-2") == ()
    second.purged("cam-1")
    assert first.of_device("cam-1") == ()
    assert list(tmp_path.iterdir()) == []


def test_a_client_id_whose_session_has_ended_leaves_no_file(tmp_path: Path) -> None:
    time = 1000.0
    filters, clients = KeptFilters(directory=tmp_path), KeptClients(tmp_path, lambda: time)
    for number in range(5):
        client_id = f"cam-1/{number}"
        assert clients.begins(client_id, [], 2, outlives=True)
        filters.of_session(client_id, outlives_connection=True).add(["a"])
        assert {file.name for file in tmp_path.iterdir()} == {"cam-1,", f"cam-1,{number}"}
        clients.ended(client_id, 1)
        time += 1 + LATE_SECONDS


def test_client_ids_are_counted_over_workers_those_of_sessions_without_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, another, dead = (mark(os.getpid()), mark(os.getppid()), f"{os.getppid()}.1")
    kept = KeptClients(tmp_path)

    def at(process: str) -> KeptClients:
        monkeypatch.setattr(kept_clients, "this_process", lambda: process)
        return kept

    assert at(another).begins("cam-1/a", [], 3, outlives=False)
    assert at(ours).begins("cam-1/b", [], 3, outlives=False)
    assert not at(ours).begins("cam-1/c", ["cam-1/b"], 3, outlives=False)
    assert not at(another).begins("cam-1/c", ["cam-1/a"], 3, outlives=True)
    assert kept.of_device("cam-1") == (), "the broker keeps none of them"
    assert at(ours).begins("cam-1/a", ["cam-1/b"], 3, outlives=False), "it is taken over"
    at(another).ended("cam-1/a", 0)
    assert not at(another).begins("cam-1/c", [], 3, outlives=False)
    at(ours).ended("cam-1/a", 0)
    assert at(dead).begins("cam-1/c", [], 3, outlives=False)
    assert at(ours).begins("cam-1/d", ["cam-1/b"], 3, outlives=False), "that of the process that was killed is over"
    assert at(dead).begins("cam-2/a", [], 2, outlives=True)
    assert at(ours).of_device("cam-2") == ("cam-2/a",), "the broker keeps that one"
    assert not at(ours).begins("cam-2/b", [], 2, outlives=False)


def test_without_a_disk_sessions_that_end_with_their_connection_are_counted_by_worker(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = KeptClients(tmp_path / "file")
    assert kept.begins("cam-1/a", [], 2, outlives=False)
    assert not kept.begins("cam-1/b", ["cam-1/a"], 2, outlives=False)
    assert not kept.begins("cam-1/b", [], 2, outlives=True)
    kept.ended("cam-1/a", 0)


def test_a_process_is_known_from_a_later_one_with_its_number() -> None:
    assert runs(this_process())
    assert not runs(f"{os.getpid()}.1")
    for text in ("", ".", "1", "x.1", f"{2**22 + 1}.", "9" * 400 + ".1"):
        assert not runs(text)


def test_a_file_of_client_ids_that_is_cut_off_loses_the_last_one_at_most(tmp_path: Path) -> None:
    kept = KeptClients(tmp_path)
    for name in "abc":
        assert kept.begins(f"cam-1/{name}", [], 16, outlives=True)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert kept.of_device("cam-1") == ("cam-1/a", "cam-1/b", "cam-1/c")[: whole[:size].count(b"\n")]


def test_client_ids_of_a_device_share_what_it_may_have(tmp_path: Path) -> None:
    shared = KeptFilters(directory=tmp_path)
    filters = shared.of_session("cam-1/a", outlives_connection=True)
    filters.set_rules(MqttRules(client_id=PREFIX, sessions_max=4, subscriptions_max=8))
    assert filters.add(["a", "b", "c"]) == {"c"}
    assert (tmp_path / "cam-1,a").exists()
    assert shared.clients.begins("cam-1/a", [], 4, outlives=True)
    shared.session_purged("cam-1")
    assert not (tmp_path / "cam-1,a").exists()


def test_our_brokers_rules_do_not_look_for_a_device_id_in_other_client_ids() -> None:
    text = acl_text([replace(MODEL, rules=rules(PREFIX))])
    assert "%c" not in text
    assert "topic write devices/+/up/#\n" in text
    assert "pattern write devices/%c/up/#\n" in acl_text([MODEL])


@pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")
async def test_an_agent_and_an_application_beside_it_before_mosquitto(tmp_path: Path) -> None:
    assert PROGRAM is not None
    async with AsyncExitStack() as stack:
        model = replace(MODEL, rules=rules(PREFIX))
        broker = await Mosquitto.start(PROGRAM, tmp_path / "run", [model])
        stack.push_async_callback(broker.close)
        h = await stack.enter_async_context(open_gateway(tmp_path, broker))
        (cam,) = await populate(h.registry, "cam-1")
        await h.set_model(rules=rules(PREFIX))
        agent, app = Paho("cam-1", V5, clean=False), Paho("cam-1/pub", V5, clean=False)
        for client in (agent, app):
            assert await client.connect("127.0.0.1", await h.door(cam)) == 0
            stack.push_async_callback(client.close)
            assert await client.subscribe("devices/cam-1/down/#", qos=1) == [1]
        backend = Paho("backend", V311, transport="unix")
        backend.client.username_pw_set("_backend")
        assert await backend.connect_unix(broker.socket) == 0
        stack.push_async_callback(backend.close)
        assert await backend.subscribe("devices/+/up/#", qos=1) == [1]
        app.client.publish("devices/cam-1/up/app", "from the app", 1)
        assert (await backend.message())[1] == b"from the app"
        backend.client.publish("devices/cam-1/down/x", "for both", 1)
        for client in (agent, app):
            assert (await client.message())[1] == b"for both"
        await revocation.revoke(h.registry, "cam-1", act=Act("test", now()))
        for client in (agent, app):
            assert await asyncio.wait_for(client.disconnected.get(), PATIENCE_SECONDS) == Reason.ADMINISTRATIVE_ACTION
        await h.count("mqtt.purge.ok")
        for client_id in ("cam-1", "cam-1/pub"):  # the broker has no session left under either
            visit = MqttVisit(Connect(V5, client_id, clean=False, username="cam2"))
            await broker.connect(lambda visit=visit: visit)  # type: ignore[misc]
            assert not (await asyncio.wait_for(visit.connack, PATIENCE_SECONDS)).session_present
            visit.disconnect(acks.disconnect(V5))
