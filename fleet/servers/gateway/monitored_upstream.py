"""A broker of somebody else's, watched: whether it can be reached, told once when that changes.

    upstream = MonitoredUpstream(AddressUpstream(host, port), clock=clock)
    async with background(upstream.run(), "the watch on the broker"): ...

It is tried once at the start. From then on the sessions' own connections tell; only while it is away it is tried again,
every few seconds. The gateway stays open meanwhile, and refuses each device with "server unavailable".
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from fleet.domain.device import Model
from fleet.servers.gateway.upstream import AddressUpstream, Factory, SocketUpstream, Upstream

log = logging.getLogger("fleet.broker")

AGAIN_SECONDS = 5.0  # an agent that was refused tries again in seconds, too


class MonitoredUpstream:
    """`upstream`, and what is known of whether it can be reached. Implements Upstream."""

    def __init__(
        self, upstream: Upstream, *, clock: Callable[[], datetime], again_seconds: float = AGAIN_SECONDS
    ) -> None:
        self._upstream, self._clock, self._again_seconds = upstream, clock, again_seconds
        self._is_reachable: bool | None = None  # not known yet
        self._since = clock()
        self._away = asyncio.Event()

    @property
    def speaks_v5(self) -> bool:
        return self._upstream.speaks_v5

    async def connect(self, factory: Factory) -> None:
        try:
            await self._upstream.connect(factory)
        except (OSError, TimeoutError) as error:
            self._lost(error)
            raise
        self._found()

    async def set_models(self, models: Sequence[Model]) -> None:
        await self._upstream.set_models(models)

    def describe(self) -> str:
        return self._upstream.describe()

    async def close(self) -> None:
        await self._upstream.close()

    def status(self) -> dict[str, object]:
        """For a person, and for JSON."""
        since = self._since.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return {"broker": self.describe(), "reachable": self._is_reachable, "since": since}

    async def run(self) -> None:
        """Try it now, and whenever it is away until it is back; for ever."""
        while True:
            await self._try()
            if self._is_reachable:
                await self._away.wait()
            await asyncio.sleep(self._again_seconds)

    async def _try(self) -> None:
        made: list[_Visit] = []

        def visit() -> _Visit:
            made.append(_Visit())
            return made[-1]

        try:
            await self.connect(visit)
        except (OSError, TimeoutError):
            return  # told already
        for each in made:
            each.leave()

    def _lost(self, error: BaseException) -> None:
        if self._is_reachable is not False:
            self._is_reachable, self._since = False, self._clock()
            reason = str(error) or type(error).__name__
            log.warning(
                "event=upstream outcome=unreachable is=%r reason=%r devices=refused until=it-answers",
                self.describe(),
                reason,
            )
        self._away.set()

    def _found(self) -> None:
        if self._is_reachable is False:
            log.warning("event=upstream outcome=reachable-again is=%r", self.describe())
        if self._is_reachable is not True:
            self._is_reachable, self._since = True, self._clock()
        self._away.clear()


class _Visit(asyncio.Protocol):
    """Comes, and goes again."""

    _transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.close()


def is_external(upstream: Upstream) -> bool:
    """Whether nobody but its owner sees to it that it runs."""
    return isinstance(upstream, AddressUpstream | SocketUpstream)
