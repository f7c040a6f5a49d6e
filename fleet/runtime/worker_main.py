"""Program of a worker process, started by the supervisor: `python -m fleet.runtime.worker_main DESCRIPTOR`.

DESCRIPTOR is its end of the channel. It receives its configuration, listens, reports ready, and serves until its
supervisor has replaced it, stops it, or has died. At SIGTERM it asks to be replaced; a second one ends its drain. It
ignores SIGINT and SIGHUP, which a terminal sends to all of its processes, and SIGUSR2, which a service manager may:
they are the supervisor's.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fleet.config.clock import utc_now
from fleet.config.logs import configure_logging, log_event
from fleet.config.settings import Settings
from fleet.config.settings_file import SettingsError, parse_settings
from fleet.domain.errors import FleetError
from fleet.home.layout import Home, open_registry
from fleet.runtime.background import background
from fleet.runtime.holder_questions import HolderQuestions
from fleet.runtime.ipc import Channel, WorkerConfig
from fleet.runtime.signals import Signals
from fleet.runtime.upstream_access import upstream_access
from fleet.runtime.worker import Worker, WorkerPlace, loop_factory, run_worker
from fleet.servers.gateway.broker.process import die_with_parent
from fleet.servers.gateway.broker.start import start_upstream
from fleet.servers.gateway.broker.upstream import SharedUpstream, Upstream

log = logging.getLogger("fleet")

MODELS_SECONDS_MAX = 2.0  # the broker has one; a session that waits for its model has ten


class SupervisorLink:
    """The worker's side of the channel: its Supervision."""

    def __init__(self, channel: Channel, signals: Signals, settings: str = "", file: Path = Path("fleet.toml")) -> None:
        self._channel, self._signals = channel, signals
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[str]] = {}
        self._questions = HolderQuestions(lambda device_id: channel.send("who-holds", device=device_id))
        self.holds: Callable[[str], bool] = lambda device_id: False
        """The gateway's, once there is one."""
        self.workers: Mapping[str, object] = {}
        """What the supervisor last said of all workers."""
        self.counters: Mapping[str, Mapping[str, Any]] = {}
        """Of each worker, as it last said."""
        self.own_counters: Callable[[], Mapping[str, object]] = dict
        """The worker's, once there is one."""
        self.not_saved = ""
        """Why the broker can't save, as it last said."""
        self.broker_stops = False
        """Whether the supervisor stops all, the broker as well."""
        self._settings, self._file = settings, file
        """Those in force, as the supervisor last said, and the file that an error names."""
        self.restart_drain_seconds: float | None = None
        """Over how long the worker drains for its successor; None: it is not asked to."""
        self.hurries = asyncio.Event()
        """Set when that is over, since all stop."""
        self._leaves = False
        self.drain_for_stop: Callable[[float], None] = lambda seconds: None
        """The worker's, once there is one."""

    async def follow(self) -> None:
        """Execute the supervisor's messages; stop the worker when the supervisor has died."""
        try:
            async for message in self._channel.messages():
                match message["type"]:
                    case "stop":
                        self.broker_stops = True
                        self.hurries.set()
                        self._signals.stop.set()
                    case "drain" if message["restarts"]:
                        self.restart_drain_seconds = message["seconds"]
                        self._signals.stop.set()
                    case "drain":
                        self.drain_for_stop(message["seconds"])
                    case "reload":
                        self._take(message["settings"])
                        self._signals.reload.set()
                    case "ping":
                        self.workers, self.counters = message["workers"], message["counters"]
                        self.not_saved = message["not_saved"]
                        self._channel.send("pong", counters=self.own_counters())
                    case "who-holds":
                        answer = "holds" if self.holds(message["device"]) else "holds-not"
                        self._channel.send(answer, device=message["device"], asker=message["asker"])
                    case "asked":
                        self._questions.on_asked(message["device"], message["workers"])
                    case "held":
                        self._questions.on_held(message["device"])
                    case "not-held":
                        self._questions.on_not_held(message["device"], message["worker"])
                    case "models-set":
                        pending = self._pending.pop(message["number"], None)
                        if pending is not None and not pending.done():
                            pending.set_result(message["problem"])
        finally:
            self.hurries.set()
            self._signals.stop.set()  # a worker that no longer receives messages must not continue

    def leave(self) -> None:
        """Drain once the supervisor has started a successor; at a second call at once, and without one."""
        if self._leaves or self.restart_drain_seconds is not None:
            self.hurries.set()
            self._signals.stop.set()
        else:
            self._leaves = True
            self._channel.send("leaves")

    def _take(self, settings: str) -> None:
        try:
            parse_settings(settings, self._file)
        except SettingsError as error:  # of a supervisor that has checked less: no reason to end
            log_event(log, logging.ERROR, "settings", outcome="failed", kept="old", reason=error.problem)
        else:
            self._settings = settings

    def settings(self) -> Settings:
        return parse_settings(self._settings, self._file)

    async def set_models(self) -> None:
        """Returns when the broker has the current models. Raises: OSError, TimeoutError."""
        number = next(self._numbers)
        self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send("models", number=number)
            async with asyncio.timeout(MODELS_SECONDS_MAX):
                problem = await self._pending[number]
        finally:
            self._pending.pop(number, None)
        if problem:
            raise OSError(problem)

    async def held_elsewhere(self, device_id: str) -> bool | None:
        """Whether another worker holds a session of the device; None: not known."""
        return await self._questions.held_elsewhere(device_id)


async def work(channel: Channel) -> int:
    """Serve with the configuration received; the exit code."""
    signals = Signals.install((signal.SIGTERM,))
    message = await channel.next()
    if message is None:
        return 1  # the supervisor has died already
    try:
        config = WorkerConfig.of(message)
        home = Home(Path(config.home))
        settings = parse_settings(config.settings, home.settings_file)
        configure_logging(config.log_level, settings.log_format, worker=config.worker)
        link = SupervisorLink(channel, signals, config.settings, home.settings_file)
        async with background(link.follow(), "the supervisor's messages"):
            await _serve(config, home, settings, link, channel, signals)
    except SettingsError as error:
        channel.send("failed", code="bad-settings", message=error.problem, advice="")
        return 1
    except FleetError as error:
        channel.send("failed", code=error.code, message=error.message, advice=error.advice)
        return 1
    except OSError as error:
        channel.send("failed", code="system", message=f"The operating system reported: {error}.", advice="")
        return 1
    return 0


async def _serve(
    config: WorkerConfig, home: Home, settings: Settings, link: SupervisorLink, channel: Channel, signals: Signals
) -> None:
    registry = await open_registry(home)
    try:
        upstream = await _upstream(config, settings, home, link)
        place = WorkerPlace(
            link,
            config.worker,
            is_shared=True,
            local={name: socket.socket(fileno=descriptor) for name, descriptor in config.local.items()},
            sockets={name: [socket.socket(fileno=each) for each in held] for name, held in config.sockets.items()},
        )
        async with run_worker(home, settings, registry, upstream, clock=utc_now, place=place) as worker:
            link.holds = worker.gateway.holds
            link.own_counters, link.drain_for_stop = worker.counters, worker.drain_for_stop
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, link.leave)
            channel.send("ready")
            await worker.until(signals)
            if link.restart_drain_seconds is not None:
                await _drain_for_restart(worker, link.restart_drain_seconds, link.hurries)
    finally:
        await registry.close()


async def _drain_for_restart(worker: Worker, seconds: float, hurries: asyncio.Event) -> None:
    async with (
        background(worker.drain_for_restart(seconds), "the drain") as draining,
        background(_until(hurries), "the stop") as hurry,
    ):
        await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _upstream(config: WorkerConfig, settings: Settings, home: Home, link: SupervisorLink) -> Upstream:
    if not config.broker_socket:  # an external broker: nothing is started
        return await start_upstream(settings.upstream, home.run, (), access=upstream_access(home, settings))
    return SharedUpstream(Path(config.broker_socket), speaks_v5=config.broker_speaks_v5, request_models=link.set_models)


def main(descriptor: int) -> int:
    die_with_parent(os.getppid(), signal.SIGKILL)  # the channel's end of file reaches only a loop that runs
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    async def run() -> int:
        channel = await Channel.on(socket.socket(fileno=descriptor))
        try:
            return await work(channel)
        finally:
            channel.close()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
