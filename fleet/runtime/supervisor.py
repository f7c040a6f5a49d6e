"""Supervisor of several worker processes: starts them, restarts those that die, forwards reload and stop.

It owns what exists once (host.py): the lock, the ports, the broker. At a worker's request it loads the models into the
broker, and it purges the broker's sessions of revoked devices. A worker that dies is restarted: at once the first time,
with growing delays when its successors die soon after their start. One that no longer answers is killed first
(heartbeat.py): the kernel would go on giving it its share of the new connections.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict

from fleet.config.clock import utc_now
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.config.timestamps import rfc3339
from fleet.domain.changes import Event
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.registry_events import decode_event
from fleet.runtime.heartbeat import PING_SECONDS, counted, silent_worker
from fleet.runtime.host import Endpoints, Host
from fleet.runtime.ipc import Channel, Message, WorkerConfig
from fleet.runtime.listeners import reserved
from fleet.runtime.signals import Signals
from fleet.runtime.stop_deadline import KILL_SECONDS_MIN
from fleet.servers.gateway.broker.start import not_saved, shared_socket
from fleet.servers.gateway.broker.visit import BrokerVisits
from fleet.servers.gateway.events.session_purge import OTHERS_SECONDS, SessionPurger
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.services.event_follower import EventFollower

log = logging.getLogger("fleet")

PROGRAM = "fleet.runtime.worker_main"
START_SECONDS_MAX = 30.0  # an interpreter with its imports, on a busy machine
STEADY_SECONDS = 1.0  # of listening: a later death is not a failed start
EARLY_DEATHS_FREE = 3  # in a row, before the next start waits
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 0.1, 10.0


def restart_delay_seconds(early_deaths: int) -> float:
    """Delay before the next start, after so many consecutive early deaths."""
    if early_deaths <= EARLY_DEATHS_FREE:
        return 0.0
    # The exponent is bounded against overflow; RESTART_SECONDS_MAX bounds the delay.
    return min(RESTART_SECONDS_MIN * 2.0 ** min(early_deaths - EARLY_DEATHS_FREE - 1, 32), RESTART_SECONDS_MAX)


def died_early(code: int, listened_seconds: float | None) -> bool:
    """Whether a worker that ended with `code` is likely to fail again at once. None: it has never listened."""
    if listened_seconds is None:
        return True
    killed = code in (-signal.SIGKILL, -signal.SIGTERM)  # from outside: a restart does not repeat it
    return not killed and listened_seconds < STEADY_SECONDS


SetModels = Callable[[], Awaitable[None]]
Forward = Callable[[int, Message], None]
"""A worker's number, and what it sends to others."""


class WorkerProcess:
    """One worker process, from start to exit. Made by `WorkerProcess.start`."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        channel: Channel,
        set_models: SetModels,
        forward: Forward,
    ) -> None:
        self.number = number
        self.unanswered = 0
        """Pings in a row without an answer."""
        self._process = process
        self._channel = channel
        self._set_models = set_models
        self._forward = forward
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, config: WorkerConfig, inherited: Sequence[int], set_models: SetModels, forward: Forward
    ) -> "WorkerProcess":
        """Start it and send it `config`; it inherits these descriptors. Raises: OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno())),
                # Our own module search path, without the working directory (-P).
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *inherited),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = await Channel.on(ours)
        channel.send("config", **asdict(config))
        return cls(config.worker, process, channel, set_models, forward)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def listens(self) -> bool:
        """Whether it is ready, and has not exited."""
        return self._ready.done() and self._ready.exception() is None and self.runs

    @property
    def runs(self) -> bool:
        """Whether it has not exited: it may accept connections before we know that it is ready."""
        return self._process.returncode is None

    def ping(self, workers: Mapping[str, object], not_saved: str) -> None:
        self.unanswered += 1
        self._channel.send("ping", workers=workers, not_saved=not_saved)

    def send(self, message_type: str, **fields: object) -> None:
        self._channel.send(message_type, **fields)

    async def ready(self) -> None:
        """Returns when it listens. Raises: Unavailable: it failed, died first, or took too long."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await asyncio.shield(self._ready)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            message = f"Worker {self.number} did not listen within {START_SECONDS_MAX:.0f} s."
            raise Unavailable("worker-not-ready", message, "Check the load of the machine.") from None

    async def ended(self) -> int:
        """Its exit code, once it has exited: minus the number of the signal that killed it."""
        code = await self._process.wait()
        await asyncio.shield(self._listening)  # its last message may give the cause; cancelling us must not cancel it
        self._channel.close()
        return code

    def reload(self) -> None:
        self._channel.send("reload")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is running."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, seconds_max: float) -> None:
        """It drains, since all are stopped; SIGKILL when it has not exited after `seconds_max`. Safe to call twice."""
        if self.listens:
            self._channel.send("stop")  # no signal: it might be seen first, and tells nothing of the broker
        else:
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds_max):
                await self._process.wait()
        except TimeoutError:
            known = {"worker": self.number, "pid": self.pid}
            log_event(log, logging.ERROR, "worker.killed", **known, reason="did not exit in time")
            self.signal(signal.SIGKILL)
        await self.ended()

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            match message["type"]:
                case "ready" if not self._ready.done():
                    self._ready.set_result(None)
                case "pong":
                    self.unanswered = 0
                case "who-holds" | "holds" | "holds-not":
                    self._forward(self.number, message)
                case "failed":
                    self._failed(Unavailable(message["code"], message["message"], message["advice"]))
                case "models":
                    request = asyncio.create_task(self._load_models(message["number"]))
                    self._requests.add(request)
                    request.add_done_callback(self._requests.discard)
        code = await self._process.wait()
        self._failed(Unavailable("worker-died", f"Worker {self.number} exited ({_cause(code)}) before it listened."))

    def _failed(self, reason: Unavailable) -> None:
        if not self._ready.done():
            self._ready.set_exception(reason)
            self._ready.exception()  # retrieved, so that asyncio logs nothing if nobody awaits it
        elif reason.code != "worker-died":
            log_event(log, logging.ERROR, "worker.failed", worker=self.number, code=reason.code, reason=reason.message)

    async def _load_models(self, number: int) -> None:
        problem = ""
        try:
            await self._set_models()
        except (OSError, TimeoutError, FleetError) as error:
            problem = str(error) or type(error).__name__
        self._channel.send("models-set", number=number, problem=problem)


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


class Supervisor:
    """A constant number of workers on one home. Made by `run_supervisor`."""

    def __init__(self, host: Host, settings: Settings, count: int) -> None:
        self.endpoints = Endpoints.of(host.home, settings, host.forward_auth)
        self.restarts = 0
        self._silent = 0
        self._last_silent: dict[str, object] = {}
        self._host = host
        self._settings = settings
        self._numbers = range(1, count + 1)
        self._workers: dict[int, WorkerProcess] = {}
        self._restarters: list[asyncio.Task[None]] = []
        self._models_lock = asyncio.Lock()
        visits = BrokerVisits(host.upstream)
        self._outcomes = OutcomeLog()
        self._purges = SessionPurger(visits, host.registry, self._outcomes, after_seconds=OTHERS_SECONDS)
        self._feed = EventFollower(host.registry, self._on_event, Limits().feed_silence_seconds_max)
        self._following = asyncio.create_task(self._feed.run(), name="the supervisor's event feed")

    async def _on_event(self, event: Event) -> None:
        self._purges.on_event(decode_event(event))

    async def start(self) -> None:
        """Returns when every worker listens. Raises: Unavailable: one of them cannot. OSError."""
        await self._feed.started()
        await asyncio.gather(*(self._start(number) for number in self._numbers))
        self._restarters = [
            asyncio.create_task(self._restart_when_dead(number), name=f"the restarter of worker {number}")
            for number in self._numbers
        ]
        self._restarters.append(asyncio.create_task(self._replace_silent(), name="the heartbeat of the workers"))

    async def until(self, signals: Signals, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return at a stop signal; a reload is forwarded to every worker. Raises: the exception of a permanent task."""
        await signals.until_stop(self._reload, (self._following, *self._restarters, *watched))

    async def close(self) -> None:
        """Every worker drains and exits; one that has not in time for the broker's own stop is killed."""
        seconds_max = self._host.deadline.left(KILL_SECONDS_MIN)
        for task in (*self._restarters, self._following):
            task.cancel()
        await asyncio.gather(*self._restarters, self._following, return_exceptions=True)
        await asyncio.gather(*(worker.stop(seconds_max) for worker in self._workers.values()))
        await self._purges.close()
        self._outcomes.close()

    def _reload(self) -> None:
        for worker in self._workers.values():
            worker.reload()

    async def _start(self, number: int) -> WorkerProcess:
        """A worker that listens. Raises: Unavailable, OSError."""
        host = self._host
        config = WorkerConfig(
            worker=number,
            home=str(host.home.path),
            settings=render(self._settings),
            log_level=logging.getLogger().level,
            broker_socket=str(shared_socket(host.upstream) or ""),
            broker_speaks_v5=host.upstream.speaks_v5,
            forward_auth=host.forward_auth.fileno() if host.forward_auth is not None else -1,
        )
        inherited = [descriptor for descriptor in (host.workers_lock, config.forward_auth) if descriptor >= 0]
        worker = await WorkerProcess.start(config, inherited, self._set_models, self._forward)
        self._workers[number] = worker
        await worker.ready()
        log_event(log, logging.INFO, "worker.ready", worker=number, pid=worker.pid)
        return worker

    async def _restart_when_dead(self, number: int) -> None:
        """Start a new worker of this number whenever it has died."""
        loop, early_deaths = asyncio.get_running_loop(), 0
        listening_since: float | None = loop.time()
        while True:
            worker = self._workers[number]
            code = await worker.ended()
            died = loop.time()
            listened_seconds = died - listening_since if listening_since is not None else None
            early_deaths = early_deaths + 1 if died_early(code, listened_seconds) else 0
            delay = restart_delay_seconds(early_deaths)
            ended = {"worker": number, "pid": worker.pid, "cause": _cause(code), "restart_seconds": delay}
            log_event(log, logging.ERROR, "worker.ended", **ended)
            await asyncio.sleep(delay)
            try:
                worker = await self._start(number)
            except (FleetError, OSError) as error:
                log_event(log, logging.ERROR, "worker.not-started", worker=number, reason=error)
                listening_since = None
                continue
            listening_since = loop.time()
            self.restarts += 1
            ms = round((listening_since - died) * 1000)
            restarted = {"worker": number, "pid": worker.pid, "restarts": self.restarts, "ms": ms}
            log_event(log, logging.WARNING, "worker.restarted", **restarted)

    async def _replace_silent(self) -> None:
        """Kill the worker that no longer answers: its restarter starts the next."""
        before: Mapping[int, int] = {}
        while True:
            await asyncio.sleep(PING_SECONDS)
            listening = {number: worker for number, worker in self._workers.items() if worker.listens}
            before = counted(before, {number: worker.unanswered for number, worker in listening.items()})
            for each, worker in listening.items():
                worker.unanswered = before[each]
            number = silent_worker(before)
            if number is not None:
                silent = listening.pop(number)
                silent.signal(signal.SIGKILL)
                known = {"worker": number, "pid": silent.pid}
                log_event(log, logging.ERROR, "worker.silent", **known, unanswered=silent.unanswered)
                self._silent += 1
                self._last_silent = {**known, "at": rfc3339(utc_now(), "seconds")}
                for worker in self._workers.values():
                    worker.unanswered = 0
            for worker in listening.values():
                worker.ping(self._status(), not_saved(self._host.upstream))

    def _status(self) -> Mapping[str, object]:
        """JSON value for `GET /v1/status`, which a worker answers."""
        counts: dict[str, object] = {"count": len(self._numbers), "restarts": self.restarts, "silent": self._silent}
        counts["mqtt"] = dict(self._outcomes.counts)
        return {**counts, "last_silent": self._last_silent} if self._last_silent else counts

    def _forward(self, sender: int, message: Message) -> None:
        """Send a question about the holder of a device's session to all others, and an answer to the asking one."""
        device = message["device"]
        match message["type"]:
            case "holds":
                self._workers[message["asker"]].send("held", device=device)
            case "holds-not":
                self._workers[message["asker"]].send("not-held", device=device, worker=sender)
            case _:
                others = [number for number, worker in self._workers.items() if worker.runs and number != sender]
                self._workers[sender].send("asked", device=device, workers=others)
                for number in others:
                    self._workers[number].send("who-holds", device=device, asker=sender)

    async def _set_models(self) -> None:
        """Load the current models into the broker, one request at a time. Raises: OSError, TimeoutError."""
        async with self._models_lock:
            await self._host.upstream.set_models(await self._host.registry.models())


@asynccontextmanager
async def run_supervisor(host: Host, count: int) -> AsyncIterator[Supervisor]:
    """`count` workers, all listening when the block begins; all have exited at its end.

    Raises: Unavailable: a port is taken, or a worker could not start. OSError.
    """
    async with AsyncExitStack() as parts:
        settings = parts.enter_context(reserved(host.settings))
        supervisor = Supervisor(host, settings, count)
        parts.push_async_callback(supervisor.close)
        await supervisor.start()
        yield supervisor
