"""The parent of several worker processes: starts them, keeps them, tells them to reload and to stop.

It holds what there is once (host.py): the lock, the ports, the broker. It teaches the broker the models when a
worker asks, and makes it forget who is gone for good. A worker that dies is replaced: at once the first time, more and
more slowly when its successors die young.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fleet.config.settings import Settings, render
from fleet.domain.errors import FleetError, Unavailable
from fleet.runtime.host import Endpoints, Premises
from fleet.runtime.ipc import Channel, Orders
from fleet.runtime.listeners import reserved
from fleet.runtime.worker import Told
from fleet.servers.gateway.brokers import shared_socket
from fleet.servers.gateway.event_feed import EventFollower
from fleet.servers.gateway.limits import Limits
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.session_purge import SessionPurger

log = logging.getLogger("fleet")

PROGRAM = "fleet.runtime.worker_main"
START_SECONDS_MAX = 30.0  # an interpreter with its imports, on a machine that has other things to do
STOP_SECONDS_MAX = 3.0  # a worker drains for two
STEADY_SECONDS = 1.0  # of listening: whoever falls later did not fall over being started
EARLY_DEATHS_FREE = 3  # in a row, before the next start waits
RESTART_SECONDS_MIN, RESTART_SECONDS_MAX = 0.1, 10.0
PURGE_AFTER_SECONDS = 1.0  # by then every worker has heard of it and signed its session off


def restart_delay_seconds(early_deaths: int) -> float:
    """How long the next start waits, after so many in a row that died before they were steady."""
    if early_deaths <= EARLY_DEATHS_FREE:
        return 0.0
    # The exponent is bounded for the sake of the number, not of the delay.
    return min(RESTART_SECONDS_MIN * 2.0 ** min(early_deaths - EARLY_DEATHS_FREE - 1, 32), RESTART_SECONDS_MAX)


def died_early(code: int, listened_seconds: float | None) -> bool:
    """Whether a worker that ended with `code` would likely do so again at once. None: it has never listened."""
    if listened_seconds is None:
        return True
    killed = code in (-signal.SIGKILL, -signal.SIGTERM)  # somebody did it: not a fault that a start brings back
    return not killed and listened_seconds < STEADY_SECONDS


SetModels = Callable[[], Awaitable[None]]


class WorkerProcess:
    """One worker's process, from its start to its end. Made by `WorkerProcess.start`."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, channel: Channel, set_models: SetModels
    ) -> None:
        self.number = number
        self._process = process
        self._channel = channel
        self._set_models = set_models
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._errands: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, orders: Orders, lock: int, set_models: SetModels) -> "WorkerProcess":
        """Start it and give it `orders`; it inherits `lock`. Raises: OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno())),
                # The modules that we run on, wherever we were started, and none that happen to lie in a directory.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), lock),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = await Channel.on(ours)
        channel.send(orders.as_message())
        return cls(orders.worker, process, channel, set_models)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Returns when it listens.

        Raises: Unavailable: it could not, or has died first, or takes too long.
        """
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await asyncio.shield(self._ready)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            message = f"Worker {self.number} did not listen within {START_SECONDS_MAX:.0f} s."
            raise Unavailable("worker-not-ready", message, "Look at what the machine is busy with.") from None

    async def ended(self) -> int:
        """Its exit code, once it has ended: minus the number of the signal that it died of."""
        code = await self._process.wait()
        await asyncio.shield(self._listening)  # its last words may say why; who waits may be cancelled, it may not
        self._channel.close()
        return code

    def reload(self) -> None:
        self._channel.say("reload")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, when it is there."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it does not end in time. Safe to call twice."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self._process.wait()
        except TimeoutError:
            log.error("event=worker.killed worker=%d pid=%d reason='did not end in time'", self.number, self.pid)
            self.signal(signal.SIGKILL)
        await self.ended()

    async def _listen(self) -> None:
        async for message in self._channel.hear():
            match message["say"]:
                case "ready" if not self._ready.done():
                    self._ready.set_result(None)
                case "failed":
                    self._failed(Unavailable(message["code"], message["message"], message["advice"]))
                case "models":
                    errand = asyncio.create_task(self._teach(message["number"]))
                    self._errands.add(errand)
                    errand.add_done_callback(self._errands.discard)
        code = await self._process.wait()
        self._failed(Unavailable("worker-died", f"Worker {self.number} has ended ({_cause(code)}) before it listened."))

    def _failed(self, reason: Unavailable) -> None:
        if not self._ready.done():
            self._ready.set_exception(reason)
            self._ready.exception()  # looked at, should nobody wait for it
        elif reason.code != "worker-died":
            log.error("event=worker.failed worker=%d code=%s reason=%r", self.number, reason.code, reason.message)

    async def _teach(self, number: int) -> None:
        problem = ""
        try:
            await self._set_models()
        except (OSError, TimeoutError, FleetError) as error:
            problem = str(error) or type(error).__name__
        self._channel.say("models-set", number=number, problem=problem)


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


class Supervisor:
    """Several workers on one home, kept at their number. Made by `supervised`."""

    def __init__(self, ground: Premises, settings: Settings, count: int) -> None:
        self.endpoints = Endpoints.of(ground.home, settings)
        self.restarts = 0
        self._ground = ground
        self._settings = settings
        self._numbers = range(1, count + 1)
        self._workers: dict[int, WorkerProcess] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._teaching = asyncio.Lock()
        self._purges = SessionPurger(ground.upstream, OutcomeLog(), after_seconds=PURGE_AFTER_SECONDS)
        self._feed = EventFollower(ground.registry, self._purges.on_event, Limits().feed_silence_seconds_max)
        self._following = asyncio.create_task(self._feed.run(), name="the supervisor's feed")

    async def start(self) -> None:
        """Returns when every worker listens.

        Raises: Unavailable: what keeps one of them from it. OSError.
        """
        await self._feed.started()
        await asyncio.gather(*(self._start(number) for number in self._numbers))
        self._keepers = [
            asyncio.create_task(self._keep(number), name=f"the keeper of worker {number}") for number in self._numbers
        ]

    async def until(self, told: Told, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return when told to stop; a reload is passed on to every worker.

        Raises: what a part that must live for ever died of.
        """
        await told.until_stop(self._reload, (self._following, *self._keepers, *watched))

    async def close(self) -> None:
        """Every worker drains and ends; what is left after STOP_SECONDS_MAX is killed."""
        for keeper in (*self._keepers, self._following):
            keeper.cancel()
        await asyncio.gather(*self._keepers, self._following, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
        await self._purges.close()

    def _reload(self) -> None:
        for worker in self._workers.values():
            worker.reload()

    async def _start(self, number: int) -> WorkerProcess:
        """A worker that listens. Raises: Unavailable, OSError."""
        ground = self._ground
        orders = Orders(
            worker=number,
            home=str(ground.home.path),
            settings=render(self._settings),
            log_level=logging.getLogger().level,
            broker_socket=str(shared_socket(ground.upstream) or ""),
            broker_speaks_v5=ground.upstream.speaks_v5,
        )
        worker = await WorkerProcess.start(orders, ground.workers_lock, self._set_models)
        self._workers[number] = worker
        await worker.ready()
        log.info("event=worker.ready worker=%d pid=%d", number, worker.pid)
        return worker

    async def _keep(self, number: int) -> None:
        """Replace the worker of this number whenever it has died."""
        loop, early_deaths = asyncio.get_running_loop(), 0
        listening_since: float | None = loop.time()
        while True:
            worker = self._workers[number]
            code = await worker.ended()
            died = loop.time()
            listened_seconds = died - listening_since if listening_since is not None else None
            early_deaths = early_deaths + 1 if died_early(code, listened_seconds) else 0
            delay = restart_delay_seconds(early_deaths)
            log.error(
                "event=worker.ended worker=%d pid=%d cause=%r restart_seconds=%g",
                *(number, worker.pid, _cause(code), delay),
            )
            await asyncio.sleep(delay)
            try:
                worker = await self._start(number)
            except (FleetError, OSError) as error:
                log.error("event=worker.not-started worker=%d reason=%r", number, str(error))
                listening_since = None
                continue
            listening_since = loop.time()
            self.restarts += 1
            log.warning(
                "event=worker.restarted worker=%d pid=%d restarts=%d ms=%.0f",
                *(number, worker.pid, self.restarts, (listening_since - died) * 1000),
            )

    async def _set_models(self) -> None:
        """The broker knows the models as they are now, whichever worker asked first. Raises: OSError, TimeoutError."""
        async with self._teaching:
            await self._ground.upstream.set_models(await self._ground.registry.models())


@asynccontextmanager
async def supervised(ground: Premises, count: int) -> AsyncIterator[Supervisor]:
    """`count` workers, all listening when the block begins and gone at its end.

    Raises: Unavailable: a port is taken, or a worker could not start. OSError.
    """
    async with AsyncExitStack() as parts:
        settings = parts.enter_context(reserved(ground.settings))
        supervisor = Supervisor(ground, settings, count)
        parts.push_async_callback(supervisor.close)
        await supervisor.start()
        yield supervisor
