"""`fleet serve --workers 2`: one fleet in several processes, none of which is missed for long."""

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fleet.cli import main as fleet_main
from fleet.config.addresses import Address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.home.layout import Home, settings_of
from fleet.home.pki import renew_server_certificate
from fleet.runtime.heartbeat import PING_SECONDS, UNANSWERED_MAX
from fleet.servers.gateway.events.late_turns import LATE_SECONDS, TICK_SECONDS
from fleet.wire.mqtt.codes import V5, V311, Reason
from hw_bench.cpu_time import process_tree
from tests.end_to_end.serve_fixtures import healthz, server_serial, stopped_before_clients_that_never_read
from tests.end_to_end.workers_fixtures import (
    TRIES_MAX,
    TWO,
    Devices,
    Identity,
    by_both,
    needs_mosquitto,
    tell,
    worker_pids,
)
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, program, run_fleet, same_ports
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def pair(home: Path, tmp_path: Path) -> Iterator[Served]:
    """Two workers."""
    serving = Served(home, tmp_path / "ready.json", (*same_ports(), "--workers", "2")).start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def shared(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two workers for all tests that end none of them, each with devices of its own."""
    folder = tmp_path_factory.mktemp("shared")
    home = Path(shutil.copytree(pristine_home, folder / "a home", symlinks=True))
    settings = Home(home).settings_file
    settings.write_text(render(replace(read_settings(settings), wss=Address("127.0.0.1", 0))))
    serving = Served(home, folder / "ready.json", TWO).start()
    try:
        yield serving
    finally:
        serving.stop()


def test_both_listen_before_the_ready_file_is_there_and_sigterm_ends_all(pair: Served) -> None:
    assert pair.endpoints["pid"] == pair.process.pid
    assert set(worker_pids(pair)) == {"1", "2"}
    assert healthz(pair) == (200, b'{"status":"ok"}\n')
    family = process_tree((pair.process.pid,))
    assert len(family) >= 4  # supervisor, broker, two workers
    assert pair.stop() == 0
    assert not pair.ready_file.exists()
    assert not process_tree(tuple(family))
    assert "event=stopped" in pair.log


def test_status_tells_which_worker_answers(shared: Served, tmp_path: Path) -> None:
    station = tmp_path / "station"
    run_fleet(shared.home, "station", "add", "line-1", "--model", "default", "--out", str(station))
    context = ssl.create_default_context(cafile=shared.ca_file)
    context.load_cert_chain(station / "station.pem", station / "station.key")
    seen = {}
    for _ in range(TRIES_MAX):
        with urllib.request.urlopen(
            f"{shared.endpoints['http']}/v1/status", context=context, timeout=PATIENCE_SECONDS
        ) as answer:
            status = json.load(answer)
        seen[str(status["worker"])] = status["pid"]
        if len(seen) == 2:
            break
    assert seen == worker_pids(shared)
    assert not {"publish", "forward_auth"} & status.keys(), "listeners that are off"


async def test_sighup_reaches_every_worker(shared: Served) -> None:
    before = server_serial(shared)
    home = Home(shared.home)
    settings = replace(settings_of(home), hosts=("localhost", "127.0.0.1"))
    assert renew_server_certificate(home, settings, datetime.now(UTC))
    async with by_both(shared, "reload outcome=ok"):
        shared.process.send_signal(signal.SIGHUP)
    assert server_serial(shared) != before


def test_a_worker_that_dies_or_is_told_to_end_is_replaced(pair: Served) -> None:
    before = worker_pids(pair)
    tell(pair, "1", signal.SIGKILL)
    pair.wait_for_line("event=worker.restarted worker=1")
    after = worker_pids(pair)
    assert after["2"] == before["2"]
    assert after["1"] != before["1"]
    assert healthz(pair)[0] == 200
    tell(pair, "2", signal.SIGTERM)
    pair.wait_for_line(f"event=worker.replaced worker=2 pid={before['2']} successor=4 ")
    assert 'cause="exit code 0"' in pair.log
    assert pair.stop() == 0


def test_a_worker_that_hangs_is_replaced_and_named_while_the_other_stays(pair: Served, tmp_path: Path) -> None:
    before = worker_pids(pair)
    tell(pair, "1", signal.SIGSTOP)
    pair.wait_for_line(f"event=worker.silent worker=1 pid={before['1']}")
    pair.wait_for_line("event=worker.restarted worker=1")
    for _ in range(10):  # the kernel gives none to the one that hung
        assert healthz(pair)[0] == 200
    after = worker_pids(pair)
    assert after["2"] == before["2"]
    assert after["1"] != before["1"]
    shown = wait_for_workers(pair, tmp_path, 1)
    assert shown["last_silent"]["pid"] == before["1"]
    assert (shown["count"], shown["silent"]) == (2, 1)
    assert pair.stop() == 0


def wait_for_workers(served: Served, folder: Path, restarts: int) -> dict[str, Any]:
    """What status says of the workers, once it has counted so many restarts."""
    station = folder / "station"
    run_fleet(served.home, "station", "add", "line-1", "--model", "default", "--out", str(station))
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(station / "station.pem", station / "station.key")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(
            f"{served.endpoints['http']}/v1/status", context=context, timeout=PATIENCE_SECONDS
        ) as answer:
            workers: dict[str, Any] = json.load(answer).get("workers", {})
        if workers.get("restarts") == restarts:
            return workers
    raise AssertionError(f"no {restarts} restarts in {workers}")


@needs_mosquitto
def test_a_broker_that_hangs_is_seen_and_restarted(shared: Served) -> None:
    tree = process_tree((shared.process.pid,))
    (broker,) = [pid for pid in tree if Path(f"/proc/{pid}/comm").read_text() == "mosquitto\n"]
    os.kill(broker, signal.SIGSTOP)
    for number in ("1", "2"):
        shared.wait_for_line(f"worker={number} event=broker.silent")
    with pytest.raises(urllib.error.HTTPError) as caught:
        healthz(shared)
    with caught.value as answer:
        assert (answer.status, json.load(answer)["code"]) == (503, "broker-silent")
    shared.wait_for_line("event=broker.restarted")
    for number in ("1", "2"):
        shared.wait_for_line(f"worker={number} event=broker.answers-again")
    assert healthz(shared)[0] == 200


@needs_mosquitto
def test_a_broker_that_cannot_save_is_degraded_and_not_down(shared: Served, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    words = ("operator", "add", "eve", "--role", "viewer", "--password-file", str(tmp_path / "password"))
    run_fleet(shared.home, *words, "--out", str(tmp_path))
    context = ssl.create_default_context(cafile=shared.ca_file)
    context.load_cert_chain(tmp_path / "eve.pem", tmp_path / "eve.key")

    def upstream() -> dict[str, Any]:
        url = f"{shared.endpoints['http']}/v1/status"
        with urllib.request.urlopen(url, context=context, timeout=PATIENCE_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)["upstream"]
        return found

    def until_health(body: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        seen = 0  # answers in a row: of both workers, as good as surely
        while seen < 20 and time.monotonic() < deadline:
            seen = seen + 1 if healthz(shared) == (200, body) else 0
        assert seen == 20

    until_health(b'{"status":"ok"}\n')
    assert "not_saved" not in upstream()
    in_its_way = (
        shared.home / "run" / "mosquitto.db.new"
    )  # where it writes a database; the error is another than ENOSPC
    in_its_way.mkdir()
    try:
        until_health(b'{"status":"degraded","reasons":["broker-not-saved"]}\n')
        assert upstream()["not_saved"] == "Is a directory."
        table = run_fleet(shared.home, "status")
        assert "not_saved" not in table  # of this command, which runs no broker
        remote = ("--cert", str(tmp_path / "eve.pem"), "--ca", str(shared.ca_file), "--url", shared.endpoints["http"])
        shown = CliRunner().invoke(fleet_main, ["status", *remote])
        assert re.search(r"^upstream +not_saved +Is a directory\.$", shown.stdout, re.MULTILINE), shown.output
    finally:
        in_its_way.rmdir()
    until_health(b'{"status":"ok"}\n')


def test_workers_that_hang_all_at_once_are_left_alone_for_longer(shared: Served) -> None:
    before = worker_pids(shared)
    for worker in before:
        tell(shared, worker, signal.SIGSTOP)
    with pytest.raises(OSError, match="timed out"):  # as when the machine is suspended
        healthz_within(shared, 2 * UNANSWERED_MAX * PING_SECONDS)
    for worker in before:
        tell(shared, worker, signal.SIGCONT)
    assert healthz(shared)[0] == 200
    assert worker_pids(shared) == before
    assert "worker.silent" not in shared.log


def healthz_within(served: Served, seconds: float) -> None:
    trust = ssl.create_default_context(cafile=served.ca_file)
    with urllib.request.urlopen(f"{served.endpoints['http']}/healthz", context=trust, timeout=seconds):
        pass


def test_nothing_outlives_a_supervisor_that_is_killed(pair: Served) -> None:
    family = [os.pidfd_open(pid) for pid in process_tree((pair.process.pid,))]
    assert len(family) >= 4
    pair.kill()
    pair.start()  # waits until the last of them is gone
    assert sorted(select.select(family, [], [], 0)[0]) == sorted(family)  # readable: it has ended
    for handle in family:
        os.close(handle)
    assert healthz(pair)[0] == 200


def test_a_worker_that_hangs_does_not_outlive_its_supervisor_either(pair: Served) -> None:
    hanging = worker_pids(pair)["1"]
    handle = os.pidfd_open(hanging)
    tell(pair, "1", signal.SIGSTOP)
    pair.kill()
    assert select.select([handle], [], [], PATIENCE_SECONDS)[0]
    os.close(handle)


def test_clients_that_never_read_hold_no_worker_up(pair: Served) -> None:
    assert stopped_before_clients_that_never_read(pair) == 0


def test_a_worker_that_cannot_start_again_is_tried_ever_more_slowly_while_the_other_serves(pair: Served) -> None:
    key = pair.home / "ca" / "issuing.key"
    away = key.rename(key.with_suffix(".away"))
    tell(pair, "1", signal.SIGKILL)
    for seconds in ("0", "0.1", "0.2"):
        pair.wait_for_line(f"restart_seconds={seconds}")
    pair.wait_for_line("event=worker.not-started worker=1")
    assert "issuing.key" in pair.log
    assert healthz(pair)[0] == 200
    away.rename(key)
    pair.wait_for_line("event=worker.restarted worker=1")
    assert "worker=2 pid" not in pair.log.partition("event=ready")[2]  # nothing happened to the other


def test_every_log_line_is_an_object_when_that_is_set(home: Path, tmp_path: Path) -> None:
    settings = home / "fleet.toml"
    settings.write_text(settings.read_text().replace('log_format = "text"', 'log_format = "json"'))
    served = Served(home, tmp_path / "ready.json", TWO, ready_line='"event":"ready"').start()
    served.stop()
    lines = [json.loads(line) for line in served.log.splitlines()]
    assert {line["worker"] for line in lines if line.get("event") == "worker.ready"} == {1, 2}
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)


def test_help_teaches_it() -> None:
    shown = CliRunner().invoke(fleet_main, ["serve", "--help"]).stdout
    assert "--workers" in shown
    assert "fleet serve --home ./home --workers auto" in shown


def test_a_port_that_is_taken_is_named_once(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = program("fleet", "serve", "--home", str(home), *TWO, "--mqtt", address, expect=1)
    assert done.stderr.count(f"he mqtt listener cannot bind {address}") == 1
    assert "event=ready" not in done.stderr


def test_two_fleets_never_share_a_port(shared: Served, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run_fleet(other, "init", str(other))
    address = "{}:{}".format(*shared.address("est"))
    for workers in ("1", "2"):
        words = [*ANY_PORTS, "--est", address, "--workers", workers]
        done = program("fleet", "serve", "--home", str(other), *words, expect=1)
        assert f"he est listener cannot bind {address}" in done.stderr


def test_a_reason_that_keeps_workers_from_starting_is_told_once(home: Path, tmp_path: Path) -> None:
    (home / "ca" / "issuing.key").unlink()
    ready = tmp_path / "ready.json"
    done = program("fleet", "serve", "--home", str(home), *TWO, "--ready-file", str(ready), expect=1)
    assert done.stderr.count("Error: ") == 1
    assert "issuing.key" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not ready.exists()


def test_a_second_server_is_refused_however_many_workers(shared: Served) -> None:
    for workers in ("1", "2"):
        words = [*ANY_PORTS, "--workers", workers]
        done = program("fleet", "serve", "--home", str(shared.home), *words, expect=1)
        assert "already" in done.stderr
    assert healthz(shared)[0] == 200


@pytest.mark.parametrize("workers", ["-1", "many", "257", "1.5", ""])
def test_a_number_of_workers_that_is_none(home: Path, workers: str) -> None:
    done = CliRunner().invoke(fleet_main, ["serve", "--home", str(home), "--workers", workers])
    assert done.exit_code == 2
    assert "is not a whole number from 0 to 256" in done.stderr


@needs_mosquitto
@pytest.mark.parametrize("version", [V311, V5])
async def test_a_device_that_comes_again_by_another_worker_has_one_session(devices: Devices, version: int) -> None:
    name = f"again-{version}"
    cam = await asyncio.to_thread(devices.enroll, name)
    old, at = await devices.connect(cam, version)
    for _ in range(TRIES_MAX):
        new, now_at = await devices.connect(cam, version)
        await old.got(old.disconnected)
        old = new
        if now_at != at:
            break
        at = now_at
    assert len(set(devices.sessions_of(name))) == 2
    await until(lambda: devices.ended(name) == len(devices.sessions_of(name)) - 1)
    endings = re.findall(rf"event=mqtt\.session device={name} .* code=(\S+)", devices.served.log)
    # The last by the other worker's connection, the others by the same worker's.
    assert set(endings) == {"taken-over"}
    backend = await devices.backend(f"devices/{name}/up/#")
    await new.subscribe(f"devices/{name}/down/#")
    await backend.publish(f"devices/{name}/down/x", b"here")
    assert await new.message() == (f"devices/{name}/down/x", b"here")
    await new.publish(f"devices/{name}/up/x", b"there")
    assert await backend.message() == (f"devices/{name}/up/x", b"there")
    assert new.disconnected.empty()


@needs_mosquitto
@pytest.mark.parametrize("version", [V311, V5])
async def test_of_connections_that_race_at_both_workers_one_wins(devices: Devices, version: int) -> None:
    name = f"race-{version}"
    cam = await asyncio.to_thread(devices.enroll, name)
    live: list[Paho] = []
    for _ in range(5):
        racing = [devices.client(cam, version) for _ in range(3)]
        codes = await asyncio.gather(*(one.connect(*devices.served.address("mqtt")) for one in racing))
        live.extend(one for one, code in zip(racing, codes, strict=True) if code == 0)
        await until(lambda: sum(one.disconnected.empty() for one in live) == 1)
        (winner,) = [one for one in live if one.disconnected.empty()]
        await winner.subscribe(f"devices/{name}/down/#")  # it lives, and not only for a moment
    assert winner.disconnected.empty()


@needs_mosquitto
@pytest.mark.parametrize("version", [V311, V5])
async def test_a_revocation_by_another_process_cuts_sessions_at_every_worker(devices: Devices, version: int) -> None:
    at: dict[str, tuple[Paho, Identity]] = {}
    for number in range(TRIES_MAX):
        identity = await asyncio.to_thread(devices.enroll, f"cut-{version}-{number}")
        client, worker = await devices.connect(identity, version, will=f"devices/{identity.name}/up/gone")
        at[worker] = client, identity
        if len(at) == 2:
            break
    backend = await devices.backend("devices/#")
    for client, identity in at.values():
        await asyncio.to_thread(run_fleet, devices.served.home, "device", "revoke", identity.name)
        assert await client.got(client.disconnected) == (0x98 if version == V5 else 0x80)
        assert await devices.client(identity, version).connect(*devices.served.address("mqtt")) >= 0x80
    for _, identity in at.values():
        await asyncio.to_thread(devices.served.wait_for_line, f"event=mqtt.purge device={identity.name} code=ok")
    await backend.publish("devices/all/up/x", b"no will was heard before this")
    assert await backend.message() == ("devices/all/up/x", b"no will was heard before this")


@needs_mosquitto
async def test_sessions_of_one_device_at_two_workers_are_one_devices(shared: Served, tmp_path: Path) -> None:
    """One by WebSocket. What outlives its connection counts at every worker; a kick and a revocation reach both."""
    words = ("--client-id", "prefix", "--max-sessions", "2")
    await asyncio.to_thread(run_fleet, shared.home, "model", "add", "many", *words)
    async with contextlib.AsyncExitStack() as stack:
        devices = await asyncio.to_thread(Devices, shared, tmp_path, stack, "many")
        cam = await asyncio.to_thread(devices.enroll, "many-1")
        for end in (("session", "kick", "many-1"), ("device", "revoke", "many-1")):
            own, at = await devices.connect(cam, V5)
            for _ in range(TRIES_MAX):
                code, worker = await devices.beside(cam, "many-1/app", "wss")
                assert code == 0
                if worker != at:
                    break
            assert worker != at
            refused_by = set[str]()
            while len(refused_by) < 2 and end[1] == "kick":
                code, worker = await devices.beside(cam, "many-1/third")
                assert code == 0x97
                refused_by.add(worker)
            assert own.disconnected.empty()
            await asyncio.to_thread(run_fleet, shared.home, *end)
            for client in (own, devices.others["many-1/app"]):
                assert await client.got(client.disconnected) == 0x98


@needs_mosquitto
async def test_a_model_made_later_is_known_to_the_broker_whichever_worker_meets_it(
    shared: Served, tmp_path: Path
) -> None:
    await asyncio.to_thread(run_fleet, shared.home, "model", "add", "meter", "--publish", "meters/{id}/#")
    async with contextlib.AsyncExitStack() as stack:
        devices = await asyncio.to_thread(Devices, shared, tmp_path, stack, "meter")
        backend = await devices.backend("meters/#")
        identity = await asyncio.to_thread(devices.enroll, "meter-1")
        for _ in range(TRIES_MAX):
            client, _ = await devices.connect(identity, V5)
            await client.publish("meters/meter-1/x", b"1")
            assert await backend.message() == ("meters/meter-1/x", b"1")
            if len(set(devices.sessions_of("meter-1"))) == 2:
                return
    pytest.fail("One worker got every connection.")


async def test_the_embedded_broker_serves_several_workers(home: Path, tmp_path: Path) -> None:
    served = Served(home, tmp_path / "ready.json", (*TWO, "--upstream", "embedded"))
    await asyncio.to_thread(served.start)
    try:
        async with contextlib.AsyncExitStack() as stack:
            devices = await asyncio.to_thread(Devices, served, tmp_path, stack)
            cam = await asyncio.to_thread(devices.enroll, "cam-1")
            old, at = await devices.connect(cam, V311)
            for _ in range(TRIES_MAX):
                new, now_at = await devices.connect(cam, V311)
                await old.got(old.disconnected)
                old = new
                if now_at != at:
                    break
            assert len(set(devices.sessions_of("cam-1"))) == 2
            assert await new.publish("devices/cam-1/up/x", b"here") == 0
    finally:
        assert await asyncio.to_thread(served.stop) == 0


@needs_mosquitto
async def test_nothing_is_taken_of_a_device_that_was_revoked_while_the_workers_stood_still(
    shared: Served, devices: Devices
) -> None:
    identity = devices.enroll("stalled-1")
    topic = "devices/stalled-1/up/t"
    client, _ = await devices.connect(identity, V5)
    backend = await devices.backend(topic)
    assert await client.publish(topic, b"before") == 0
    assert await backend.message() == (topic, b"before")
    before = worker_pids(shared)
    for worker in before:
        tell(shared, worker, signal.SIGSTOP)
    try:
        await asyncio.to_thread(run_fleet, shared.home, "device", "revoke", "stalled-1", "--reason", "lost")
        for qos in (1, 0):
            sent = client.client.publish(topic, b"after", qos)
        await asyncio.to_thread(sent.wait_for_publish, PATIENCE_SECONDS)  # of QoS 0: it has left
        await asyncio.sleep(TICK_SECONDS + LATE_SECONDS)  # for less they have not stood still
    finally:
        for worker in before:
            tell(shared, worker, signal.SIGCONT)
    assert await client.got(client.disconnected) == Reason.ADMINISTRATIVE_ACTION
    assert worker_pids(shared) == before
    assert await backend.publish(topic, b"marker") == 0  # behind what was relayed before the session closed
    assert await backend.message() == (topic, b"marker")
