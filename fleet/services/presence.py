"""Writes who is connected into the registry: in batches, after the fact. No connection waits for it.

    presence = Presence(registry, run, clock)
    await presence.begin()
    session = presence.opened(...); presence.ended(session, code)      # at once, in memory
    await presence.run(heard)                                          # writes, until cancelled
    await presence.close()

Of a client that comes and goes within one batch, the last is written. What could not be written is tried again.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice

from msgspec.structs import replace

from fleet.config.clock import Clock
from fleet.config.logs import FailureLog, log_event
from fleet.domain.access import Act
from fleet.domain.changes import Change, Notice, made_by
from fleet.domain.errors import FleetError
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.domain.presence import ClientSession, GatewayRun, SessionNotice, encode_notices
from fleet.domain.registry_events import SessionKicked
from fleet.services.announcing import Announcer, LatestSessions
from fleet.services.revocation import given_reason

log = logging.getLogger("fleet.gateway")

BATCH_SECONDS = 0.1
BATCH_MAX = 512  # sessions in one transaction: some 5 ms, for which other writes wait
HEARTBEAT_SECONDS = 10.0
HEARD_SECONDS = 300.0  # between two notes of when the device of an open session was heard
RETRY_SECONDS = 1.0
CLOSE_SECONDS_MAX = 1.0

Heard = Callable[[], Iterable[tuple[ClientSession, float]]]
"""Every open session, and how many seconds ago its device was heard."""


class Presence:
    """The sessions of one process, `run`."""

    def __init__(
        self,
        registry: Registry,
        run: GatewayRun,
        clock: Clock,
        *,
        sends_events: bool = False,
        stop_seconds: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`sends_events`: sessions that begin or have ended are events of the registry, too. `stop_seconds`: what is
        left for `close` when it is called.
        """
        self._registry = registry
        self.sends_events = sends_events
        self.topic: Announcer | None = None
        """Announces them at a broker."""
        self._stop_seconds = stop_seconds
        self._run = run
        self._clock = clock
        self._waiting = LatestSessions()
        self._noted = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failures = FailureLog(log, "presence.not-written")
        self._events = Announcer(self._send_event, self._failures)
        self.lost = 0
        """Sessions that were not written since too many waited; none once that is in the log."""

    def opened(self, device_id: str, client_id: str, peer: Peer, mqtt: str) -> ClientSession:
        """A session that begins now."""
        now = self._clock()
        session = ClientSession(
            device_id=device_id,
            client_id=client_id,
            connected_at=now,
            seen_at=now,
            ended_at=None,
            reason="",
            address=peer.address,
            node=self._run.node,
            run=self._run.run,
            mqtt=mqtt,
            tls=peer.tls_version,
            tls_group=peer.group,
        )
        self._changed(session)
        return session

    def ended(self, session: ClientSession, code: str) -> None:
        """`session` has been closed for the reason `code`."""
        now = self._clock()
        self._changed(replace(session, seen_at=now, ended_at=now, reason=code))

    def _changed(self, session: ClientSession) -> None:
        if self.sends_events:
            self._events.put(session)
        if self.topic is not None:
            self.topic.put(session)
        self._note(session)

    def _note(self, session: ClientSession) -> None:
        self.lost += self._waiting.put(session)
        self._noted.set()

    async def begin(self) -> None:
        """What earlier runs of this worker left open is over. Raises: Unavailable."""
        self._run = replace(self._run, seen_at=self._clock())
        await self._registry.begin_run(self._run)

    async def run(self, heard: Heard) -> None:
        """Write, and send events, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._events.run())
            await self._keep_writing(heard)

    async def _keep_writing(self, heard: Heard) -> None:
        clock = asyncio.get_running_loop().time
        heard_until = clock()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._noted.wait()
            if (passed := clock() - heard_until) >= HEARD_SECONDS:
                heard_until += passed
                await self._note_heard(heard, passed)
            await asyncio.sleep(BATCH_SECONDS)
            try:
                await self.write()
                self._failures.succeeded()
                self._report_lost()
            except FleetError as error:
                self._failures.failed(code=error.code)
                await asyncio.sleep(RETRY_SECONDS)
                self._noted.set()

    def _report_lost(self) -> None:
        if self.lost:
            log_event(log, logging.WARNING, "presence.lost", sessions=self.lost)
            self.lost = 0

    async def _note_heard(self, heard: Heard, passed: float) -> None:
        """Of devices heard in the seconds that have passed since the last time."""
        now = self._clock()
        for number, (session, seconds) in enumerate(heard(), 1):
            if seconds <= passed:
                self._note(replace(session, seen_at=now - timedelta(seconds=seconds)))
            if number % BATCH_MAX == 0:
                await asyncio.sleep(0)  # the messages of others are not held up meanwhile

    async def write(self) -> None:
        """All that waits now, and that this run lives. Raises: FleetError: what was not written waits on."""
        async with self._writing:
            self._noted.clear()
            left = len(self._waiting)  # what comes meanwhile is for the next call: clients may come without end
            while True:
                batch = self._waiting.take([*islice(self._waiting, min(left, BATCH_MAX))])
                try:
                    await self._registry.note_sessions([*batch.values()], replace(self._run, seen_at=self._clock()))
                except BaseException:
                    self._waiting.put_back(batch)
                    raise
                left -= BATCH_MAX
                if left <= 0:
                    return

    async def _send_event(self, notices: Sequence[SessionNotice]) -> int:
        await self.write()  # first: the reader of an event finds the session
        await self._registry.tell(Notice((encode_notices(self._run.run, notices),)))
        return 0

    async def close(self) -> None:
        """Write what waits: then the run is over, and with it what it has left open. For a second at the most."""
        seconds = min(self._stop_seconds(), CLOSE_SECONDS_MAX)
        ends_at = asyncio.get_running_loop().time() + seconds
        with suppress(TimeoutError, FleetError):
            async with asyncio.timeout_at(ends_at - seconds / 2):
                await self.write()
                await self._events.close()
        with suppress(TimeoutError, FleetError):
            async with asyncio.timeout_at(ends_at):
                await self._registry.end_runs(self._run.node, self._run.run)


async def kick(registry: Registry, kicked: SessionKicked, *, act: Act, reason: str = "") -> None:
    """Close the device's sessions at every gateway; it may connect again. Raises: Invalid (`bad-reason`)."""
    named = {} if kicked.client_id is None else {"client_id": kicked.client_id}
    will = "published" if kicked.publishes_will else "discarded"
    entry = made_by(act, "session.kick", f"device {kicked.device_id}", will=will, **named, **given_reason(reason))
    await registry.commit(Change(entry, events=(kicked.event(),)))
