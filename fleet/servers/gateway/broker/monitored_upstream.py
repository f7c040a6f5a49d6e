"""Upstream wrapper that monitors an external broker and logs when its reachability changes.

    upstream = MonitoredUpstream(AddressUpstream(host, port), clock=clock)
    async with background(upstream.run(), "the monitoring of the broker"): ...

It is probed once at the start. From then on the sessions' connections show its state; only while it is unreachable it
is probed every few seconds. Meanwhile the gateway stays open and refuses each device with "server unavailable".
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from fleet.config.logs import log_event
from fleet.config.timestamps import rfc3339
from fleet.servers.gateway.broker.upstream import External, Factory, Upstream, UpstreamWrapper

log = logging.getLogger("fleet.broker")

PROBE_SECONDS = 5.0  # a refused agent also retries within seconds


class MonitoredUpstream(UpstreamWrapper):
    """`upstream` and its reachability. Implements Upstream."""

    def __init__(
        self, upstream: Upstream, *, clock: Callable[[], datetime], probe_seconds: float = PROBE_SECONDS
    ) -> None:
        super().__init__(upstream)
        self._clock, self._probe_seconds = clock, probe_seconds
        self._is_reachable: bool | None = None  # unknown
        self._since = clock()
        self._unreachable = asyncio.Event()

    async def connect(self, factory: Factory) -> None:
        try:
            await self._upstream.connect(factory)
        except (OSError, TimeoutError) as error:
            self._on_failure(error)
            raise
        self._on_success()

    def status(self) -> dict[str, object]:
        """JSON value for `GET /v1/status`."""
        since = rfc3339(self._since, "seconds")
        return {"broker": self.describe(), "reachable": self._is_reachable, "since": since}

    async def run(self) -> None:
        """Probe now, and while it is unreachable; until cancelled."""
        while True:
            await self._probe()
            if self._is_reachable:
                await self._unreachable.wait()
            await asyncio.sleep(self._probe_seconds)

    async def _probe(self) -> None:
        made: list[_Probe] = []

        def probe() -> _Probe:
            made.append(_Probe())
            return made[-1]

        try:
            await self.connect(probe)
        except (OSError, TimeoutError):
            return  # logged by connect
        for each in made:
            each.close()

    def _on_failure(self, error: BaseException) -> None:
        if self._is_reachable is not False:
            self._is_reachable, self._since = False, self._clock()
            reason = str(error) or type(error).__name__
            log_event(log, logging.WARNING, "upstream", outcome="unreachable", broker=self.address, reason=reason)
        self._unreachable.set()

    def _on_success(self) -> None:
        if self._is_reachable is False:
            log_event(log, logging.WARNING, "upstream", outcome="reachable-again", broker=self.address)
        if self._is_reachable is not True:
            self._is_reachable, self._since = True, self._clock()
        self._unreachable.clear()


class _Probe(asyncio.Protocol):
    """Connects and closes."""

    _transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def is_external(upstream: Upstream) -> bool:
    """Whether the broker is run by others: not started or supervised by us."""
    return isinstance(upstream, External)
