"""Announces who connects and who is gone: collected, at a bounded rate, at least once. No connection waits for it.

announcer = Announcer(send, FailureLog(log, "presence.not-published"))
announcer.put(session)             # at once, in memory
await announcer.run()              # sends, until cancelled
await announcer.close(seconds)
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress

from fleet.config.logs import FailureLog, log_event
from fleet.domain.errors import FleetError
from fleet.domain.presence import ClientSession, SessionNotice
from fleet.domain.rates import Buckets

log = logging.getLogger("fleet.gateway")

WAITING_MAX = 200_000  # client ids, 0.1 GB; reached when a registry or a broker is away for long
COLLECT_SECONDS = 0.1
NOTICE_SECONDS = 1.0
NOTICE_AGAIN_SECONDS = 10.0  # of one client id: one that comes and goes without end is 8,640 notices a day
NOTICES_AT_ONCE_MAX = 100  # 15 KB
DEVICE_NOTICES_PER_SECOND = 1.0  # of all client ids of a device, which may choose new ones without end; 10 at once
DEVICE_WAITING_MAX = 1000  # client ids of one device that wait for their notices

Sessions = dict[tuple[str, str], ClientSession]
"""By device id and client id."""
Send = Callable[[Sequence[SessionNotice]], Awaitable[int]]
"""Returns how many of the notices can never be sent. Raises: FleetError: all of them are sent again."""


class LatestSessions:
    """The newest session of each client id, WAITING_MAX at most, `device_max` of a device: the oldest are dropped."""

    def __init__(self, device_max: int = WAITING_MAX) -> None:
        self._sessions: Sessions = {}
        self._device_max = device_max
        self._by_device: dict[str, dict[str, None]] = {}
        """Client ids of each device, the oldest first."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._sessions)

    def put(self, session: ClientSession) -> int:
        """How many were dropped for it."""
        key = (session.device_id, session.client_id)
        known = self._sessions.get(key)
        if known is not None and _outdated(session, known):
            return 0
        self._sessions[key] = session
        own = self._by_device.setdefault(session.device_id, {})
        own[session.client_id] = None
        if len(own) > self._device_max:
            self._drop((session.device_id, next(iter(own))))
        elif len(self._sessions) > WAITING_MAX:
            self._drop(next(iter(self._sessions)))
        else:
            return 0
        return 1

    def take(self, keys: Sequence[tuple[str, str]]) -> Sessions:
        return {key: self._drop(key) for key in keys if key in self._sessions}

    def put_back(self, taken: Sessions) -> None:
        """First in the queue again; what was put meanwhile is newer."""
        self._sessions = {**taken, **self._sessions}
        for device_id, client_id in taken:
            self._by_device[device_id] = {client_id: None, **self._by_device.get(device_id, {})}

    def _drop(self, key: tuple[str, str]) -> ClientSession:
        device_id, client_id = key
        own = self._by_device[device_id]
        del own[client_id]
        if not own:
            del self._by_device[device_id]
        return self._sessions.pop(key)


def _outdated(session: ClientSession, known: ClientSession) -> bool:
    """Whether `known` says more of their client id."""
    if known.ended_at is not None and session.ended_at is None:
        return known.connected_at == session.connected_at  # else it is the next one, even if the clock was set back
    return known.connected_at > session.connected_at  # taken over: the newer one is what counts


class Announcer:
    """Sends a notice of each session that has begun or ended: of those of one client id the last, every
    NOTICE_AGAIN_SECONDS at most; of those of one device DEVICE_NOTICES_PER_SECOND.
    """

    def __init__(self, send: Send, failures: FailureLog) -> None:
        self._send = send
        self._failures = failures
        self._pending = LatestSessions(DEVICE_WAITING_MAX)
        self._sent_at: dict[tuple[str, str], float] = {}
        self._by_device = Buckets(DEVICE_NOTICES_PER_SECOND)
        self._noted = asyncio.Event()
        self.lost = 0
        """Notices that were never sent, since too many waited or the receiver refuses them; 0 once that is logged."""

    def put(self, session: ClientSession) -> None:
        self.lost += self._pending.put(session)
        self._noted.set()

    async def run(self) -> None:
        """Send until cancelled. What fails is logged, and sent later."""
        clock = asyncio.get_running_loop().time
        next_at = clock()
        while True:
            await self._noted.wait()
            await asyncio.sleep(max(COLLECT_SECONDS, next_at - clock()))
            next_at = clock() + NOTICE_SECONDS
            self._noted.clear()
            try:
                await self._send_due(clock())
                self._failures.succeeded()
            except FleetError as error:
                self._failures.failed(code=error.code)
            if self.lost:
                log_event(log, logging.WARNING, "presence.lost", sessions=self.lost)
                self.lost = 0
            if self._pending:
                self._noted.set()

    async def close(self, seconds: float | None = None) -> None:
        """Send what waits, for `seconds` at most. What fails is dropped."""
        with suppress(TimeoutError, FleetError):
            async with asyncio.timeout(seconds):
                await self._send_due(math.inf)

    async def _send_due(self, now: float) -> None:
        """Those of client ids without a recent notice. Raises: FleetError: they are sent later."""
        self._sent_at = {key: at for key, at in self._sent_at.items() if now - at < NOTICE_AGAIN_SECONDS}
        due = [key for key in self._pending if key not in self._sent_at]
        if now < math.inf:
            due = [key for key in due if not self._by_device.take(key[0], now)]
        for first in range(0, len(due), NOTICES_AT_ONCE_MAX):
            taken = self._pending.take(due[first : first + NOTICES_AT_ONCE_MAX])
            try:
                self.lost += await self._send([SessionNotice.of(each) for each in taken.values()])
            except BaseException:
                self._pending.put_back(taken)
                raise
            self._sent_at.update(dict.fromkeys(taken, now))
