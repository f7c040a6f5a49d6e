"""The broker behind the gateway: which one, with what rules, and that none is left behind."""

import asyncio
import os
import signal
import stat
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.config.addresses import parse_broker
from fleet.domain.device import Model
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttOverride, MqttRules
from fleet.servers.gateway.broker import process as broker_process
from fleet.servers.gateway.broker.embedded import Embedded
from fleet.servers.gateway.broker.mosquitto import Mosquitto, acl_text, config_text, mosquitto_program
from fleet.servers.gateway.broker.private_socket import private_directory
from fleet.servers.gateway.broker.start import start_upstream
from fleet.servers.gateway.broker.upstream import AddressUpstream, SocketUpstream
from fleet.servers.gateway.broker.visit import purge_session
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.gateway_fixtures import MODEL, Wire, device, open_gateway, populate, refused
from tests.servers.paho_client import Paho
from tests.waiting import PATIENCE_SECONDS

PROGRAM = mosquitto_program()
needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")


# What mosquitto is told


def test_access_rules_repeat_the_models() -> None:
    models = (
        Model("cam2", publish=("devices/{id}/up/#", "all/{model}"), subscribe=("news/+",)),
        Model("lock", publish=("devices/{id}/up/#", "x-{id}-{model}/%c/y", "$odd/{id}"), subscribe=()),
    )
    assert acl_text(models).splitlines() == [
        "user _backend",
        "topic readwrite #",
        "topic read $SYS/#",
        "topic deny devices/+/fleet/#",
        "",
        "user _publisher",
        "topic write devices/+/fleet/#",
        "topic write fleet/presence/#",
        "",
        "user cam2",
        "topic read news/+",
        "topic write all/cam2",
        "",
        "pattern read devices/%c/fleet/#",
        "pattern write $odd/%c",
        "pattern write devices/%c/up/#",
        "pattern write x-%c-lock/+/y",
    ]


def test_access_rules_are_wider_where_a_filter_has_tags() -> None:
    filters = ("sites/{tag:site}/x", "{tenant}/{id}/{tag:site}-{tag:row}/#")
    acme = Model("cam2", publish=filters, subscribe=(), rules=ModelRules(tenant="acme"))
    lines = acl_text((acme,)).splitlines()[9:]
    fleet = "pattern read devices/%c/fleet/#"
    assert lines == ["user cam2", "topic write sites/+/x", "", fleet, "pattern write acme/%c/+/#"]
    assert "tenant" not in acl_text((replace(acme, rules=ModelRules()),))


def test_access_rules_hold_what_overrides_grant() -> None:
    gold = MqttOverride("tier=gold", publish=("gold/{id}",), subscribe=("gold",))
    cam = Model("cam2", publish=("up",), subscribe=(), rules=ModelRules(mqtt=MqttRules(overrides=(gold,))))
    lines = acl_text((cam,)).splitlines()
    begin = lines.index("user cam2")
    assert lines[begin : begin + 4] == ["user cam2", "topic read gold", "topic write up", ""]
    assert "pattern write gold/%c" in lines


def test_the_configuration_opens_one_door_only() -> None:
    lines = config_text().splitlines()
    assert [line for line in lines if line.startswith("listener")] == ["listener 0 broker.sock"]
    assert ("user root" in lines) == (os.geteuid() == 0)


# Which broker


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("mqtt://broker.example:1884", "mqtt://broker.example:1884"),
        ("mqtt://broker.example", "mqtt://broker.example:1883"),
        ("mqtt://[::1]:1883/", "mqtt://::1:1883"),
        ("unix:/run/b.sock", "unix:/run/b.sock"),
    ],
)
async def test_somebody_elses_broker(tmp_path: Path, spec: str, told: str) -> None:
    upstream = await start_upstream(parse_broker(spec), tmp_path, ())
    assert told in upstream.describe()
    assert upstream.speaks_v5
    await upstream.set_models((MODEL,))
    await upstream.close()


async def test_no_mosquitto_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.servers.gateway.broker.start.mosquitto_program", lambda: None)
    with pytest.raises(Invalid) as caught:
        await start_upstream(parse_broker("mosquitto"), tmp_path, ())
    assert caught.value.code == "no-mosquitto"
    upstream = await start_upstream(parse_broker("auto"), tmp_path / "run", ())
    assert isinstance(upstream, Embedded)
    await upstream.close()


async def test_connections_by_address_and_by_socket(tmp_path: Path) -> None:
    for kind in ("tcp", "unix"):
        side = Wire()
        loop = asyncio.get_running_loop()
        upstream: AddressUpstream | SocketUpstream
        if kind == "tcp":
            server = await loop.create_server(lambda: side, "127.0.0.1", 0)  # noqa: B023
            upstream = AddressUpstream("127.0.0.1", server.sockets[0].getsockname()[1])
        else:
            server = await loop.create_unix_server(lambda: side, tmp_path / "b.sock")  # noqa: B023
            upstream = SocketUpstream(tmp_path / "b.sock")
        near = Wire()
        await upstream.connect(lambda: near)  # noqa: B023
        near.send(b"\xc0\x00")
        assert (await side.packet()).encode() == b"\xc0\x00"
        near.transport.close()
        await side.until_closed()
        server.close()


async def test_a_purge_is_no_worse_than_the_broker(tmp_path: Path) -> None:
    assert not await purge_session(SocketUpstream(tmp_path / "nobody.sock"), device("cam-1"))
    for answer in (b"\x20\x02\x00\x05", b"\x00\x00", b"\xd0\x00", b""):

        class Answering(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                transport.write(answer)  # noqa: B023
                if not answer:  # noqa: B023
                    transport.close()

        server = await asyncio.get_running_loop().create_unix_server(Answering, tmp_path / "b.sock")
        assert not await purge_session(SocketUpstream(tmp_path / "b.sock"), device("cam-1"))
        server.close()


# Where


def test_the_directory_is_ours_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    assert stat.S_IMODE(private_directory(run).stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        private_directory(tmp_path / "file")


@needs_mosquitto
async def test_what_is_written_is_for_us_alone(tmp_path: Path) -> None:
    assert PROGRAM is not None
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", (MODEL,))
    try:
        modes = {
            name: stat.S_IMODE((tmp_path / "run" / name).stat().st_mode) for name in ("mosquitto.conf", "mosquitto.acl")
        }
        assert set(modes.values()) == {0o600}
        assert await purge_session(broker, device("cam-1"))
    finally:
        await broker.close()
    await broker.close()


@needs_mosquitto
async def test_a_home_with_a_long_name(tmp_path: Path) -> None:
    assert PROGRAM is not None
    run = tmp_path / ("long name " * 12).strip() / "run"
    broker = await Mosquitto.start(PROGRAM, run, (MODEL,))
    try:
        assert len(str(broker.socket)) > 108
        assert await purge_session(broker, device("cam-1"))
    finally:
        await broker.close()


# How it starts and ends


def runs(pid: int) -> bool:
    """Whether that process is there, and more than a name that nobody has asked after yet."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_program_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="exited at once"):
        await Mosquitto.start("/bin/false", tmp_path / "run", ())
    with pytest.raises(FileNotFoundError):
        await Mosquitto.start("/nowhere/mosquitto", tmp_path / "run", ())


async def test_a_program_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_process, "READY_SECONDS_MAX", 0.2)
    script = tmp_path / "mute"
    script.write_text("#!/bin/sh\necho $$ > pid\nexec sleep 60\n")
    script.chmod(0o755)
    with pytest.raises(TimeoutError):
        await Mosquitto.start(str(script), tmp_path / "run", ())
    assert not runs(int((tmp_path / "run" / "pid").read_text()))


@needs_mosquitto
async def test_two_in_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROGRAM is not None
    monkeypatch.setattr(broker_process, "PREDECESSOR_SECONDS_MAX", 0.1)
    broker = await Mosquitto.start(PROGRAM, tmp_path / "run", ())
    with pytest.raises(OSError, match="Another broker"):
        await Mosquitto.start(PROGRAM, tmp_path / "run", ())
    assert await purge_session(broker, device("cam-1"))
    await broker.close()
    await (await Mosquitto.start(PROGRAM, tmp_path / "run", ())).close()


PARENT = """
import asyncio, sys
from pathlib import Path
from fleet.servers.gateway.broker.visit import purge_session
from fleet.servers.gateway.broker.start import start_upstream
from fleet.config.addresses import parse_broker

async def main():
    upstream = await start_upstream(parse_broker(sys.argv[1]), Path(sys.argv[2]), ())
    print(upstream.process._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("spec", [pytest.param("mosquitto", marks=needs_mosquitto), "embedded"])
async def test_it_dies_with_its_parent(tmp_path: Path, spec: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, spec, str(tmp_path / "run"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE_SECONDS))
    assert runs(pid)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    # Whoever starts next waits for it, and finds its socket free.
    upstream = await start_upstream(parse_broker(spec), tmp_path / "run", ())
    assert await purge_session(upstream, device("cam-1"))
    await upstream.close()
    assert not runs(pid)


# The embedded one


async def test_the_embedded_broker_serves_311(tmp_path: Path) -> None:
    broker = await Embedded.start(tmp_path / "run")
    async with open_gateway(tmp_path, broker) as h:
        one, two = await populate(h.registry, "cam-1", "cam-2")
        device, other = Paho("cam-1", V311), Paho("cam-2", V311)
        assert await device.connect("127.0.0.1", await h.door(one)) == 0
        assert await other.connect("127.0.0.1", await h.door(two)) == 0
        backend = Paho("backend", V311, transport="unix")
        assert await backend.connect_unix(broker.socket) == 0
        await backend.subscribe("devices/+/up/#", qos=1)
        for qos in (0, 1, 2):
            device.client.publish("devices/cam-1/up/t", str(qos), qos)
        assert sorted([(await backend.message())[1] for _ in range(3)]) == [b"0", b"1", b"2"]
        assert await device.subscribe("#", "news/x") == [0x80, 1]
        await backend.publish("news/x", b"down")
        assert await device.message() == ("news/x", b"down")
        assert await other.publish("devices/cam-1/up/t", b"forged", 1) == 0  # acknowledged, and dropped
        await device.publish("devices/cam-1/up/t", b"last")
        assert await backend.message() == ("devices/cam-1/up/t", b"last")
        wire = await h.dial(two)
        wire.send(encode_connect(Connect(V5, "cam-2")))
        assert await refused(wire, V5) == Reason.UNSUPPORTED_PROTOCOL_VERSION
        for client in (device, other, backend):
            await client.close()
    await broker.close()


def test_only_topics_and_names_of_models_are_in_the_access_rules() -> None:
    same = Model(MODEL.name, timedelta(1), (), MODEL.publish, MODEL.subscribe)
    assert acl_text((MODEL,)) == acl_text((same,)) != acl_text((replace(same, name="cam3"),))


@needs_mosquitto
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as root")
async def test_a_broker_that_runs_as_root_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert PROGRAM is not None
    await (await Mosquitto.start(PROGRAM, tmp_path / "run", ())).close()
    assert [r.levelname for r in caplog.records if "event=broker.root" in r.message] == ["WARNING"]
