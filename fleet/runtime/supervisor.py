"""Supervisor of several worker processes: starts them, restarts those that die, replaces them at request,
forwards reload and stop.

It owns what exists once (host.py): the lock, the ports, the broker. At a worker's request it loads the models into the
broker, and it purges the broker's sessions of revoked devices. A worker that dies is restarted: at once the first time,
with growing delays when its successors die soon after their start. One that no longer answers is killed first
(heartbeat.py): the kernel would go on giving it its share of the new connections. One that is replaced leaves when its
successor accepts on the same sockets (slot.py), so that no connection is refused; so does one that gets SIGTERM itself.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain

from fleet.config.clock import utc_now
from fleet.config.listeners import MQTT_NAMES
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.config.timestamps import rfc3339
from fleet.domain.changes import Event
from fleet.domain.errors import FleetError
from fleet.domain.registry_events import decode_event
from fleet.home.node_name import node_name
from fleet.runtime.heartbeat import PING_SECONDS, counted, silent_worker
from fleet.runtime.host import Endpoints, Host
from fleet.runtime.ipc import Message, WorkerConfig
from fleet.runtime.listeners import addresses, reserved, with_addresses
from fleet.runtime.live_settings import BY_WORKERS, IN_PLACE
from fleet.runtime.reloading import renew_access
from fleet.runtime.signals import KILL_SECONDS_MIN, Signals
from fleet.runtime.slot import Slot
from fleet.runtime.worker_process import WorkerProcess, cause_of
from fleet.servers.gateway.broker.start import not_saved, shared_socket
from fleet.servers.gateway.broker.visit import BrokerVisits
from fleet.servers.gateway.events.session_purge import OTHERS_SECONDS, SessionPurger
from fleet.servers.gateway.limits.kept_filters import KEPT_FILTERS, KeptFilters
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.tasks import Tasks
from fleet.services.event_follower import EventFollower

log = logging.getLogger("fleet")

STEADY_SECONDS = 1.0  # of listening: a later death is not a failed start
EARLY_DEATHS_FREE = 3  # in a row, before the next start waits
PRESENCE_SECONDS_MAX = 10.0  # a minute later such sessions are `unknown` by themselves
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


class Supervisor:
    """A constant number of workers on one home. Made by `run_supervisor`."""

    def __init__(self, host: Host, settings: Settings, count: int) -> None:
        self.endpoints = Endpoints.of(host.home, settings, host.local)
        self.restarts = 0
        self._reloads = 0
        self._silent = 0
        self._last_silent: dict[str, object] = {}
        self._host = host
        self._settings = settings
        self._slots = [Slot(number, count) for number in range(1, count + 1)]
        self._workers: dict[int, WorkerProcess] = {}
        """By number, those that are being replaced too."""
        self._replacing: asyncio.Task[None] | None = None
        self._drained_at: float | None = None
        """When the sessions of all workers are to have ended, once the server is about to stop."""
        self._restarters: list[asyncio.Task[None]] = []
        self._leaving = Tasks()
        self._models_lock = asyncio.Lock()
        visits = BrokerVisits(host.upstream)
        self._outcomes = OutcomeLog()
        kept = KeptFilters(directory=host.home.run / KEPT_FILTERS)
        self._purges = SessionPurger(visits, host.registry, self._outcomes, kept, after_seconds=OTHERS_SECONDS)
        self._feed = EventFollower(host.registry, self._on_event, DEFAULT_LIMITS.feed_silence_seconds_max)
        self._following = asyncio.create_task(self._feed.run(), name="the supervisor's event feed")

    async def _on_event(self, event: Event) -> None:
        self._purges.on_event(decode_event(event))

    async def start(self) -> None:
        """Returns when every worker listens. Raises: Unavailable: one of them cannot. OSError."""
        await self._feed.started()
        await asyncio.gather(*(self._start(slot, slot.number) for slot in self._slots))
        self._restarters = [
            asyncio.create_task(self._restart_when_dead(slot), name=f"the restarter of worker {slot.number}")
            for slot in self._slots
        ]
        self._restarters.append(asyncio.create_task(self._replace_silent(), name="the heartbeat of the workers"))

    async def until(self, signals: Signals, watched: Sequence[asyncio.Task[None]] = ()) -> None:
        """Return at a stop signal; a reload is forwarded to every worker, at a restart request all are replaced.

        Raises: the exception of a permanent task.
        """
        watched = (self._following, *self._restarters, *watched)
        await signals.until_stop(self._reload, watched, restart=self.replace_workers)

    def drain_for_stop(self, seconds: float) -> None:
        """Every worker ends its MQTT sessions over `seconds`, and its health check says that it drains."""
        self._drained_at = asyncio.get_running_loop().time() + seconds
        if self._replacing is not None:
            self._replacing.cancel()
        for slot in self._slots:
            slot.release(MQTT_NAMES)
        for worker in self._workers.values():
            worker.drain_for_stop(seconds)

    async def close(self) -> None:
        """Every worker drains and exits; one that has not in time for the broker's own stop is killed."""
        seconds_max = self._host.deadline.left(KILL_SECONDS_MIN)
        await self._leaving.close()
        tasks = [*self._restarters, self._following, *((self._replacing,) if self._replacing is not None else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self._slots:
            slot.release()  # what connects now is refused, and waits for nobody
        await asyncio.gather(*(worker.stop(seconds_max) for worker in self._workers.values()))
        await self._purges.close()
        self._outcomes.close()

    def _reload(self) -> None:
        self._reloads += 1
        self._take_up(self._host.live.current)
        for worker in self._workers.values():
            worker.send("reload", settings=render(self._settings))

    def _take_up(self, settings: Settings) -> None:
        """What each worker gets from now on."""
        self._settings = with_addresses(settings, addresses(self._settings))
        renew_access(self._host.upstream, self._host.home, settings)

    def replace_workers(self) -> None:
        """Replace all while none is missed: their successors listen before they drain.

        Does nothing while that is under way.
        """
        if self._replacing is not None and not self._replacing.done():
            log_event(log, logging.WARNING, "workers.replaced", outcome="under-way")
            return
        self._replacing = asyncio.create_task(self._replace_all(), name="the replacement of the workers")

    async def _replace_all(self) -> None:
        """All have successors before the first drains: a session that one of them ends never begins at the next that
        will end it.
        """
        began, draining, problem = asyncio.get_running_loop().time(), [], ""
        live, before, reloads = self._host.live, self._host.live.current, self._reloads
        if not live.reread(IN_PLACE | BY_WORKERS):
            reason = "fleet.toml cannot be put in force: see event=settings"
            log_event(log, logging.ERROR, "workers.replaced", outcome="failed", kept="old", reason=reason)
            return
        self._take_up(live.current)
        for slot in self._slots:
            async with slot.lock:
                old = slot.process
                try:
                    await self._succeed(slot)
                except (FleetError, OSError) as error:
                    problem = str(error)
                    break
            draining.append(self._end(old, slot.process.number))
        if problem and not draining:  # the settings may be to blame: one that dies is started with those before
            # What a reload has told the workers meanwhile is in force.
            live.put_back(before, BY_WORKERS if self._reloads != reloads else IN_PLACE | BY_WORKERS)
            self._take_up(live.current)
        await asyncio.gather(*draining)
        outcome = {"outcome": "failed", "kept": "old", "reason": problem} if problem else {"outcome": "ok"}
        ms = round((asyncio.get_running_loop().time() - began) * 1000)
        log_event(log, logging.ERROR if problem else logging.INFO, "workers.replaced", **outcome, ms=ms)

    async def _replace_one(self, worker: WorkerProcess) -> None:
        """`worker` has got SIGTERM, which tells it again to end without a successor."""
        slot = next((each for each in self._slots if each.process is worker), None)
        if slot is None or self._drained_at is not None:
            return
        async with slot.lock:
            if slot.process is not worker:
                return
            try:
                await self._succeed(slot)
            except (FleetError, OSError) as error:
                known = {"worker": worker.number, "outcome": "failed", "kept": "old", "reason": error}
                log_event(log, logging.ERROR, "workers.replaced", **known)
                return
        await self._end(worker, slot.process.number)

    async def _end(self, worker: WorkerProcess, successor: int) -> None:
        code = await worker.drain_for_restart(self._settings.restart_drain_seconds)
        del self._workers[worker.number]
        if code:
            await self._end_sessions(worker)
        ended = {"worker": worker.number, "pid": worker.pid, "successor": successor, "cause": cause_of(code)}
        log_event(log, logging.INFO, "worker.replaced", **ended)

    async def _end_sessions(self, worker: WorkerProcess) -> None:
        """What it has left open is over, and no successor of its number says so."""
        host = self._host
        try:
            async with asyncio.timeout(PRESENCE_SECONDS_MAX):
                await host.registry.end_runs(node_name(host.home.path), worker=worker.number)
        except (FleetError, TimeoutError) as error:
            log_event(log, logging.WARNING, "presence.not-written", worker=worker.number, reason=error)

    async def _succeed(self, slot: Slot) -> None:
        """A second worker listens, and is that of the slot. Raises: Unavailable, OSError: it has the first still."""
        successor = await self._launch(slot, slot.next_number(self._workers))
        try:
            await successor.ready()
        except BaseException:
            successor.signal(signal.SIGKILL)
            await successor.ended()
            del self._workers[successor.number]
            raise
        self._listens(slot, successor)

    async def _start(self, slot: Slot, number: int) -> None:
        """The slot has a worker, and it listens. Raises: Unavailable, OSError."""
        worker = await self._launch(slot, number)
        slot.take(worker, None)
        await worker.ready()
        self._listens(slot, worker)

    def _listens(self, slot: Slot, worker: WorkerProcess) -> None:
        now = asyncio.get_running_loop().time()
        slot.take(worker, now)
        if self._drained_at is not None:  # it takes the place of one that has died meanwhile
            worker.drain_for_stop(max(0.0, self._drained_at - now))
        log_event(log, logging.INFO, "worker.ready", worker=worker.number, pid=worker.pid)

    async def _launch(self, slot: Slot, number: int) -> WorkerProcess:
        """Start a worker on the slot's sockets. Raises: Unavailable, OSError."""
        host = self._host
        config = WorkerConfig(
            worker=number,
            home=str(host.home.path),
            settings=render(self._settings),
            log_level=logging.getLogger().level,
            broker_socket=str(shared_socket(host.upstream) or ""),
            broker_speaks_v5=host.upstream.speaks_v5,
            local={name: taken.fileno() for name, taken in host.local.items()},
            sockets=slot.descriptors(self._settings),
        )
        inherited = [host.workers_lock, *config.local.values(), *chain.from_iterable(config.sockets.values())]
        worker = await WorkerProcess.start(config, inherited, self._set_models, self._forward)
        self._workers[number] = worker
        return worker

    async def _restart_when_dead(self, slot: Slot) -> None:
        """Start a new worker whenever that of the slot has died."""
        loop, early_deaths = asyncio.get_running_loop(), 0
        while True:
            worker = await slot.changed()
            async with slot.lock:
                if slot.process is not worker:
                    continue  # it has been replaced
                code, died = await worker.ended(), loop.time()
                early_deaths = early_deaths + 1 if died_early(code, slot.listened_seconds(died)) else 0
                delay = restart_delay_seconds(early_deaths)
                known = {"worker": worker.number, "pid": worker.pid}
                log_event(log, logging.ERROR, "worker.ended", **known, cause=cause_of(code), restart_seconds=delay)
                if delay:
                    slot.release()  # the kernel gives the others its share
                    await asyncio.sleep(delay)
                try:
                    await self._start(slot, worker.number)
                except (FleetError, OSError) as error:
                    log_event(log, logging.ERROR, "worker.not-started", worker=worker.number, reason=error)
                    continue
                self.restarts += 1
                known["pid"], ms = slot.process.pid, round((loop.time() - died) * 1000)
                log_event(log, logging.WARNING, "worker.restarted", **known, restarts=self.restarts, ms=ms)

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
            counters = {str(worker.number): worker.counters for worker in listening.values() if worker.counters}
            for worker in listening.values():
                worker.ping(workers=self._status(), counters=counters, not_saved=not_saved(self._host.upstream))

    def _status(self) -> Mapping[str, object]:
        """JSON value for `GET /v1/status`, which a worker answers."""
        counts: dict[str, object] = {"count": len(self._slots), "restarts": self.restarts, "silent": self._silent}
        counts["mqtt"] = dict(self._outcomes.counts)
        return {**counts, "last_silent": self._last_silent} if self._last_silent else counts

    def _forward(self, sender: int, message: Message) -> None:
        """Pass on a question about the holder of a device's session, and its answers; replace a worker that leaves."""
        if message["type"] == "leaves":
            self._leaving.start(self._replace_one(self._workers[sender]))
            return
        device = message["device"]
        match message["type"]:
            case "holds" if asker := self._workers.get(message["asker"]):
                asker.send("held", device=device)
            case "holds-not" if asker := self._workers.get(message["asker"]):
                asker.send("not-held", device=device, worker=sender)
            case "holds" | "holds-not":
                pass  # the one that asked has ended
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
        settings = parts.enter_context(reserved(host.live.current))
        supervisor = Supervisor(host, settings, count)
        parts.push_async_callback(supervisor.close)
        await supervisor.start()
        yield supervisor
