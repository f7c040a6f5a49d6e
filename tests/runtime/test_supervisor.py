"""What a supervisor decides, and how it and its workers speak; that it works is in end_to_end/test_workers.py."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec import structs

from fleet.config.addresses import Address, parse_broker, parse_local_address
from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.domain.errors import Unavailable
from fleet.domain.presence import ClientSession, GatewayRun, SessionState
from fleet.home.creation import create_home
from fleet.home.layout import Home, settings_of
from fleet.home.node_name import node_name
from fleet.runtime.holder_questions import QUESTIONS_MAX
from fleet.runtime.host import Host
from fleet.runtime.ipc import LINE_SIZE_MAX, Channel, WorkerConfig
from fleet.runtime.listeners import reserved
from fleet.runtime.live_settings import LiveSettings
from fleet.runtime.signals import Signals, StopDeadline
from fleet.runtime.supervisor import (
    EARLY_DEATHS_FREE,
    RESTART_SECONDS_MAX,
    RESTART_SECONDS_MIN,
    STEADY_SECONDS,
    Supervisor,
    died_early,
    restart_delay_seconds,
)
from fleet.runtime.worker_main import SupervisorLink
from fleet.runtime.worker_process import WorkerProcess
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.waiting import PATIENCE_SECONDS

ORDERS = WorkerConfig(2, "/a home", "[fleet]\n", 20, "/run/broker.sock", True)


def test_first_deaths_are_made_good_at_once_and_many_in_a_row_ever_more_slowly() -> None:
    delays = [restart_delay_seconds(deaths) for deaths in range(40)]
    assert delays[: EARLY_DEATHS_FREE + 1] == [0.0] * (EARLY_DEATHS_FREE + 1)
    waits = delays[EARLY_DEATHS_FREE + 1 :]
    assert waits[:3] == [RESTART_SECONDS_MIN, 2 * RESTART_SECONDS_MIN, 4 * RESTART_SECONDS_MIN]
    assert waits == sorted(waits)
    assert waits[-1] == restart_delay_seconds(10**9) == RESTART_SECONDS_MAX


@pytest.mark.parametrize(
    ("code", "listened_seconds", "early"),
    [
        (1, None, True),
        (-signal.SIGKILL, None, True),  # killed in its start again and again: whoever does it must not make us spin
        (1, 0.0, True),
        (-signal.SIGSEGV, STEADY_SECONDS / 2, True),
        (1, STEADY_SECONDS, False),
        (-signal.SIGKILL, 0.0, False),
        (-signal.SIGTERM, 0.0, False),
    ],
)
def test_which_deaths_count_against_the_next_start(code: int, listened_seconds: float | None, early: bool) -> None:
    assert died_early(code, listened_seconds) is early


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    channels = await Channel.on(ours), await Channel.on(theirs)
    yield channels
    for channel in channels:
        channel.close()


async def test_orders_arrive_as_they_were_given(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    orders = replace(ORDERS, settings="# ü\n" * 50_000)
    ours.send("config", **asdict(orders))
    message = await theirs.next()
    assert message is not None
    assert WorkerConfig.of(message) == orders


async def test_messages_arrive_in_order_until_the_other_side_is_gone(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    for number in range(3):
        theirs.send("models", number=number)
    theirs.close()
    assert [message["number"] async for message in ours.messages()] == [0, 1, 2]
    ours.send("models-set", number=0, problem="")  # lost, and no error


async def test_settings_that_a_worker_refuses_leave_it_those_it_had(
    ends: tuple[Channel, Channel], caplog: pytest.LogCaptureFixture
) -> None:
    supervisor, worker = ends
    signals = cast("Signals", SimpleNamespace(stop=asyncio.Event(), reload=asyncio.Event()))
    link = SupervisorLink(worker, signals, render(Settings(half_open_max=7)))
    following = asyncio.create_task(link.follow())
    refused = render(Settings(broker_auth=parse_local_address("127.0.0.1:9")))
    supervisor.send("reload", settings=refused)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await signals.reload.wait()
    assert link.settings().half_open_max == 7
    assert "event=settings outcome=failed kept=old" in caplog.text
    supervisor.close()
    await following


async def test_who_holds_a_session_is_asked_of_the_other_workers(ends: tuple[Channel, Channel]) -> None:
    supervisor, worker = ends
    link = SupervisorLink(worker, cast("Signals", SimpleNamespace(stop=asyncio.Event())))
    following = asyncio.create_task(link.follow())
    asked = [asyncio.create_task(link.held_elsewhere("cam-1")) for _ in range(2)]
    assert await supervisor.next() == {"type": "who-holds", "device": "cam-1"}  # once for both
    supervisor.send("held", device="cam-2")  # asked by nobody
    supervisor.send("held", device="cam-1")
    assert await asyncio.gather(*asked) == [True, True]
    assert await link.held_elsewhere("cam-1") is None  # nobody answers
    assert await supervisor.next() == {"type": "who-holds", "device": "cam-1"}
    link.holds = lambda device_id: device_id == "cam-3"
    for device in ("cam-1", "cam-3"):
        supervisor.send("who-holds", device=device, asker=2)
    assert await supervisor.next() == {"type": "holds-not", "device": "cam-1", "asker": 2}
    assert await supervisor.next() == {"type": "holds", "device": "cam-3", "asker": 2}
    supervisor.close()
    await asyncio.wait_for(following, PATIENCE_SECONDS)


async def test_questions_to_other_workers_are_bounded(ends: tuple[Channel, Channel]) -> None:
    supervisor, worker = ends
    link = SupervisorLink(worker, cast("Signals", SimpleNamespace(stop=asyncio.Event())))
    asked = [asyncio.create_task(link.held_elsewhere(f"cam-{number}")) for number in range(QUESTIONS_MAX + 5)]
    assert await asyncio.gather(*asked) == [None] * (QUESTIONS_MAX + 5)  # neither a yes nor a no
    worker.close()
    assert len([message async for message in supervisor.messages()]) == QUESTIONS_MAX


async def test_nobody_holds_a_session_once_every_other_worker_has_said_so(ends: tuple[Channel, Channel]) -> None:
    supervisor, worker = ends
    link = SupervisorLink(worker, cast("Signals", SimpleNamespace(stop=asyncio.Event())))
    following = asyncio.create_task(link.follow())
    for answers, held in (((2, 3), False), ((3, 3), None), ((), None)):  # one that hangs may hold it
        asked = asyncio.create_task(link.held_elsewhere("cam-1"))
        assert await supervisor.next() == {"type": "who-holds", "device": "cam-1"}
        supervisor.send("not-held", device="cam-1", worker=2)  # of an earlier question
        supervisor.send("asked", device="cam-1", workers=[2, 3])
        for number in answers:
            supervisor.send("not-held", device="cam-1", worker=number)
        assert await asked is held
    asked = asyncio.create_task(link.held_elsewhere("cam-1"))
    assert await supervisor.next() == {"type": "who-holds", "device": "cam-1"}
    supervisor.send("asked", device="cam-1", workers=[])  # it is the only one that runs
    assert await asked is False
    supervisor.close()
    await asyncio.wait_for(following, PATIENCE_SECONDS)


async def test_an_answer_reaches_all_who_wait_for_it_whoever_gives_up_first(ends: tuple[Channel, Channel]) -> None:
    supervisor, worker = ends
    link = SupervisorLink(worker, cast("Signals", SimpleNamespace(stop=asyncio.Event())))
    following = asyncio.create_task(link.follow())
    first, second = (asyncio.create_task(link.held_elsewhere("cam-1")) for _ in range(2))
    await supervisor.next()
    first.cancel()
    await asyncio.wait((first,))
    supervisor.send("held", device="cam-1")
    assert await second is True
    supervisor.close()
    await asyncio.wait_for(following, PATIENCE_SECONDS)


def test_a_supervisor_passes_questions_and_answers_on() -> None:
    sent: list[tuple[int, str, dict[str, object]]] = []

    class Process(SimpleNamespace):
        def send(self, message_type: str, **fields: object) -> None:
            sent.append((self.number, message_type, fields))

    workers = {number: Process(number=number, runs=number != 3) for number in (1, 2, 3, 4)}
    supervisor = cast("Supervisor", SimpleNamespace(_workers=workers))
    Supervisor._forward(supervisor, 1, {"type": "who-holds", "device": "cam-1"})
    assert sent[0] == (1, "asked", {"device": "cam-1", "workers": [2, 4]})  # before anybody can have answered
    assert sent[1:] == [(number, "who-holds", {"device": "cam-1", "asker": 1}) for number in (2, 4)]
    sent.clear()
    Supervisor._forward(supervisor, 2, {"type": "holds-not", "device": "cam-1", "asker": 1})
    Supervisor._forward(supervisor, 4, {"type": "holds", "device": "cam-1", "asker": 1})
    assert sent == [(1, "not-held", {"device": "cam-1", "worker": 2}), (1, "held", {"device": "cam-1"})]


async def test_purges_are_in_the_status_and_what_was_left_out_of_the_log_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Registry(SimpleNamespace):
        async def device(self, device_id: str) -> None:
            """It has been deleted: nothing is left to purge."""

    monkeypatch.setattr("fleet.runtime.supervisor.OTHERS_SECONDS", 0.0)
    host = SimpleNamespace(home=Home(tmp_path), upstream=None, registry=Registry(), deadline=StopDeadline(), local={})
    supervisor = Supervisor(cast("Host", host), ports(), 2)
    assert supervisor._status() == {"count": 2, "restarts": 0, "silent": 0, "mqtt": {}}
    devices = 200
    with caplog.at_level(logging.INFO):
        for number in range(devices):
            await supervisor._on_event(Event(EventKind.DEVICE_STATE, f"cam-{number}", DeviceState.REVOKED))
        await supervisor._purges._tasks.ended()
        told = caplog.text.count("event=mqtt.purge")
        assert told < devices
        await supervisor.close()
    assert supervisor._status()["mqtt"] == {"mqtt.purge.ok": devices}
    assert f"={devices - told}" in caplog.text


@pytest.mark.parametrize("code", [0, -signal.SIGKILL])
async def test_sessions_of_a_worker_that_was_killed_while_it_left_are_over(tmp_path: Path, code: int) -> None:
    async def drain_for_restart(seconds: float) -> int:
        return code

    home, now = Home(tmp_path), datetime.now(UTC)
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    for worker in (1, 2):
        run = GatewayRun(f"{worker:016x}", node_name(home.path), worker, now)
        await registry.begin_run(run)
        name, address = f"cam-{worker}", "192.0.2.1"
        one = ClientSession(name, name, now, now, None, "", address, run.node, run.run, "5.0", "TLSv1.3", "X25519")
        await registry.note_sessions([one], run)
    host = SimpleNamespace(home=home, upstream=None, registry=registry, deadline=StopDeadline(), local={})
    supervisor = Supervisor(cast("Host", host), ports(), 2)
    draining = cast("WorkerProcess", SimpleNamespace(number=1, pid=1, drain_for_restart=drain_for_restart))
    supervisor._workers[1] = draining
    await supervisor._end(draining, 3)
    found = {each.session.device_id: each.state(now) for each in await registry.sessions()}
    first = SessionState.DISCONNECTED if code else SessionState.CONNECTED  # it has written them itself
    assert found == {"cam-1": first, "cam-2": SessionState.CONNECTED}
    await supervisor.close()
    await registry.close()


@pytest.mark.parametrize("reloads", [False, True])
async def test_a_reload_during_a_replacement_that_fails_stays_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reloads: bool
) -> None:
    home = await create_home(tmp_path / "home", Settings(), datetime.now(UTC))
    live, registry = LiveSettings(home, settings_of(home)), await SqliteRegistry.open(tmp_path / "registry.db")
    host = SimpleNamespace(
        home=home,
        upstream=SimpleNamespace(is_ours=True),
        registry=registry,
        deadline=StopDeadline(),
        local={},
        live=live,
    )
    supervisor = Supervisor(cast("Host", host), live.current, 1)
    supervisor._slots[0].take(cast("WorkerProcess", SimpleNamespace(number=1)), None)

    def write(**changed: object) -> None:
        home.settings_file.write_text(render(structs.replace(settings_of(home), **changed)))

    async def not_started(slot: object) -> None:
        if reloads:
            write(half_open_max=9)
            live.reread()
            supervisor._reload()
        raise OSError("no such worker")

    monkeypatch.setattr(supervisor, "_succeed", not_started)
    write(half_open_max=8, webhook_seconds_max=1.0)
    await supervisor._replace_all()
    kept = structs.replace(settings_of(home), webhook_seconds_max=Settings().webhook_seconds_max)
    assert live.current == supervisor._settings
    assert live.current == (kept if reloads else structs.replace(kept, half_open_max=Settings().half_open_max))
    await supervisor.close()
    await registry.close()


async def test_half_a_message_is_none(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs._writer.write(b'{"type": "rea')
    theirs.close()
    assert await ours.next() is None


async def test_a_message_without_end_is_the_end(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs._writer.write(b"x" * (LINE_SIZE_MAX + 2))
    assert await asyncio.wait_for(ours.next(), PATIENCE_SECONDS) is None


async def test_a_worker_ends_when_its_supervisor_is_gone_though_its_parent_lives(tmp_path: Path) -> None:
    home = await create_home(tmp_path / "home", Settings(), datetime.now(UTC))
    ours, theirs = socket.socketpair()
    with reserved(ports()) as settings:
        argv = (sys.executable, "-m", "fleet.runtime.worker_main", str(theirs.fileno()))
        process = await asyncio.create_subprocess_exec(*argv, pass_fds=(theirs.fileno(),))
        theirs.close()
        channel = await Channel.on(ours)
        external = structs.replace(settings, upstream=parse_broker("unix:/nowhere"))
        channel.send("config", **asdict(WorkerConfig(1, str(home.path), render(external), logging.ERROR, "", True)))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await channel.next() == {"type": "ready"}
            for number in (signal.SIGINT, signal.SIGHUP):  # meant for a terminal's foreground, not for it
                process.send_signal(number)
            socket.create_connection(("127.0.0.1", settings.est.port), PATIENCE_SECONDS).close()
            assert process.returncode is None
            channel.close()
            assert await process.wait() == 0


@pytest.mark.parametrize(("changes", "code"), [({}, "no-registry"), ({"channel": 0, "x": 1}, "other-version")])
async def test_a_worker_says_why_it_cannot_start(tmp_path: Path, changes: dict[str, int], code: str) -> None:
    (tmp_path / "fleet.toml").write_text(render(Settings()))
    ours, theirs = socket.socketpair()
    argv = (sys.executable, "-m", "fleet.runtime.worker_main", str(theirs.fileno()))
    process = await asyncio.create_subprocess_exec(*argv, pass_fds=(theirs.fileno(),))
    theirs.close()
    channel = await Channel.on(ours)
    config = WorkerConfig(1, str(tmp_path), render(Settings()), logging.ERROR, "", True)
    channel.send("config", **asdict(config) | changes)
    async with asyncio.timeout(PATIENCE_SECONDS):
        said = [message async for message in channel.messages()]
        assert await process.wait() == 1
    channel.close()
    assert [(message["type"], message["code"]) for message in said] == [("failed", code)]


def ports(http: int = 0) -> Settings:
    """Any port of this machine for each listener."""
    free = Address("127.0.0.1", 0)
    return structs.replace(Settings(), est=free, mqtt=free, http=Address("127.0.0.1", http))


def sharing(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_any_port_is_chosen_once_and_shared_by_all_who_follow() -> None:
    with reserved(ports()) as settings:
        chosen = [settings.est.port, settings.mqtt.port, settings.http.port]
        assert all(chosen)
        assert len(set(chosen)) == 3
        for port in chosen:
            with sharing(port), sharing(port), pytest.raises(OSError, match="in use"), socket.socket() as stranger:
                stranger.bind(("127.0.0.1", port))
            with pytest.raises(ConnectionRefusedError):  # the reservation itself takes no connections
                socket.create_connection(("127.0.0.1", port), 5)
        assert (settings.workers, settings.hosts) == (Settings().workers, Settings().hosts)
    with reserved(settings) as again:
        assert again == settings


def test_every_address_of_a_name_gets_the_same_port() -> None:
    with reserved(structs.replace(ports(), est=Address("localhost", 0))) as settings:
        families = {found[0] for found in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        for family in families:
            with socket.socket(family) as stranger, pytest.raises(OSError, match="in use"):
                stranger.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", settings.est.port))


def test_a_port_that_others_share_already_is_taken() -> None:
    with sharing(0) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(Unavailable, match=f"he http listener cannot bind 127.0.0.1:{port}") as caught,
            reserved(ports(http=port)),
        ):
            pass
    assert caught.value.code == "cannot-listen"
