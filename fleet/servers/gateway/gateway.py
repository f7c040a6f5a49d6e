"""The gateway: sessions on one side, the registry's events on the other, and the table between them.

gateway = Gateway(registry, upstream, clock=clock)
feed = asyncio.create_task(gateway.run())
await gateway.following()          # before the listener accepts: no revocation is missed
listen(gateway.protocol, ...)
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState, Model
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.admission import open_session
from fleet.servers.gateway.context import SessionContext
from fleet.servers.gateway.event_feed import EventFollower
from fleet.servers.gateway.limits import Limits
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.revoked_cache import RevokedCache
from fleet.servers.gateway.session import Phase, Session
from fleet.servers.gateway.session_purge import SessionPurger
from fleet.servers.gateway.session_registry import SessionRegistry
from fleet.servers.gateway.upstream import Upstream
from fleet.wire.mqtt.codes import Reason
from fleet.wire.mqtt.connect import Connect

log = logging.getLogger("fleet.gateway")


class Gateway:
    """Every live MQTT session of one process.

    `purges`: whether it also makes the broker forget who is gone for good. Of several gateways before one broker none
    should: whoever started them does, once all have heard.
    """

    def __init__(
        self,
        registry: Registry,
        upstream: Upstream,
        *,
        clock: Callable[[], datetime],
        limits: Limits | None = None,
        purges: bool = True,
    ) -> None:
        self._registry = registry
        self._limits = limits or Limits()
        self._journal = OutcomeLog()
        self._table: SessionRegistry[Session] = SessionRegistry()
        self._upstream = upstream
        self._feed = EventFollower(registry, self._hear, self._limits.feed_silence_seconds_max, self._judge_anew)
        self._ended = RevokedCache()
        self._context = SessionContext(
            upstream, clock, self._limits, self._journal, self._table, self._open, self._ended, self._prepare
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges = SessionPurger(upstream, self._journal) if purges else None
        self._applying = asyncio.Lock()  # first come, first served: the later model stays
        self._setting = asyncio.Lock()
        self._prepared: frozenset[str] = frozenset()

    def protocol(self, peer: Peer) -> asyncio.Protocol:
        """The protocol for one connection whose TLS handshake has proved `peer`."""
        return Session(self._context, peer)

    async def run(self) -> None:
        """Follow the registry until cancelled. The sessions rely on it: run it before anything listens."""
        await self._feed.run()

    async def following(self) -> None:
        """Returns once every event from now on reaches the sessions."""
        await self._feed.started()

    async def close(self) -> None:
        """End every session, telling those of 5.0 why; what it was still doing is cancelled."""
        for session in self._table:
            session.end(close_reasons.SHUTTING_DOWN)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._purges is not None:
            await self._purges.close()

    @property
    def sessions(self) -> int:
        """Connections at the moment, those that have not been admitted yet included."""
        return len(self._table)

    @property
    def stats(self) -> Mapping[str, int]:
        """Live and read-only: `mqtt.connect.ok`, `mqtt.connect.CODE`, `mqtt.session.ENDING`, `mqtt.publish.refused`,
        `mqtt.subscribe.refused`, `mqtt.deliver.refused` -> how often.
        """
        return self._journal.counts

    async def _prepare(self, model: str) -> None:
        """A model that was added while we serve: nobody is told of it, and it matters when its first device comes."""
        if model not in self._prepared:
            await self._set_models(await self._registry.models())

    async def _set_models(self, models: Sequence[Model]) -> None:
        async with self._setting:
            await self._upstream.set_models(models)
            self._prepared = frozenset(model.name for model in models)

    def _open(self, session: Session, connect: Connect) -> None:
        if not self._feed.reliable():
            # Nobody new while we could not hear of their revocation.
            session.refuse("feed-down", Reason.SERVER_UNAVAILABLE)
            return
        self._start(open_session(self._context, self._registry, session))

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("event=gateway.failed", exc_info=task.exception())

    async def _hear(self, event: Event) -> None:
        self._ended.hear(event)
        match event.kind:
            case EventKind.DEVICE_STATE:
                self._device_moved(event.subject, event.detail)
            case EventKind.CREDENTIAL_ENDED:
                self._credential_ended(event.subject, event.detail)
            case EventKind.MODEL_CHANGED:
                await self._model_changed(event.subject)
        if self._purges is not None:
            await self._purges.hear(event)  # the sessions have been signed off above

    def _judge_anew(self) -> None:
        """What happened to whom is not to be known any more: everybody proves themselves again."""
        for session in self._table:
            session.end(close_reasons.EVENTS_MISSED)

    def _device_moved(self, device_id: str, state: str) -> None:
        if state == DeviceState.ACTIVE:
            return
        for session in self._table.of_device(device_id):
            session.end(close_reasons.DEVICE_ENDED)

    def _credential_ended(self, holder: str, fingerprint: str) -> None:
        table = self._table
        ended = table.of_fingerprint(bytes.fromhex(fingerprint)) if fingerprint else table.of_device(holder)
        for session in ended:
            session.end(close_reasons.CREDENTIAL_ENDED)

    async def _model_changed(self, name: str) -> None:
        # Whoever is being admitted now may have been judged by the old model: they ask again.
        for session in self._table:
            session.stale = session.phase is Phase.OPENING
        model = await self._registry.model(name)
        if model is not None:
            # Not awaited: a broker that is slow to learn of it must not keep a revocation waiting.
            self._start(self._apply(model, await self._registry.models()))

    async def _apply(self, model: Model, models: Sequence[Model]) -> None:
        async with self._applying:
            # First the wall behind us, then the one in front: a topic newly allowed must not die at the broker.
            try:
                await self._set_models(models)
            except (OSError, TimeoutError) as error:
                log.error("event=broker.rules-not-set model=%s error=%s", model.name, error)
            for session in self._table:
                if session.admission is not None and session.admission.device.model == model.name:
                    session.set_model(model)
            self._journal.note("mqtt.model", "applied", asyncio.get_running_loop().time(), model=model.name)
