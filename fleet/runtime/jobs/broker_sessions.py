"""Job: ends sessions in an external broker when the registry does not admit their device any more.

The broker's sessions are compared as a whole when the job starts, after each interruption and every SWEEP_SECONDS; in
between it follows the events. A session that had a right which its model has lost is ended, too: brokers keep answers
about topics, and subscriptions, for as long as a connection lasts.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import aclosing
from functools import partial

from fleet.broker_sessions.api import SHAPES, BrokerApi, Sessions, credentials_in, opened
from fleet.config.addresses import ApiAddress
from fleet.config.clock import Clock
from fleet.config.logs import FailureLog, log_event
from fleet.config.settings import Settings
from fleet.domain.changes import EventKind
from fleet.domain.client_ids import device_of
from fleet.domain.device import IN_SERVICE, Device, Model
from fleet.domain.mqtt_overrides import depends_on_tags, model_of
from fleet.domain.ports import Registry
from fleet.domain.registry_events import (
    CredentialEnded,
    DeviceStateChanged,
    DeviceTagged,
    DistrustChanged,
    ModelChanged,
    RightChanged,
    SessionKicked,
    decode_event,
)
from fleet.domain.topic_policy import policy_of
from fleet.home.layout import Home
from fleet.runtime.background import Follow, mirrored
from fleet.runtime.upstream_access import broker_context
from fleet.services.broker_access import is_admissible
from fleet.services.revocation import has_revoked

log = logging.getLogger("fleet.broker_sessions")

AT_ONCE_MAX = 16  # requests to the broker
AGAIN_SECONDS = 10.0  # longer than a broker waits for our answers to one CONNECT
SWEEP_SECONDS = 300.0


def broker_api(home: Home, settings: Settings, broker: ApiAddress) -> BrokerApi:
    """`broker`, as the settings say. Raises: Invalid: `bad-password-file`, `bad-certificate-file`."""
    tls = broker_context(home, settings.broker_sessions_ca, "broker_sessions.ca") if broker.is_tls else None
    file = home.path / settings.broker_sessions_password_file
    credentials_in(file)  # a mistake refuses the start
    return BrokerApi(SHAPES[broker.kind], broker.url, tls, file)


async def end_refused_sessions(registry: Registry, broker: BrokerApi, clock: Clock) -> None:
    """End them until cancelled. A broker or registry that fails is logged, and tried again."""
    models: dict[str, Model] = {}

    async def compared(sessions: Sessions) -> Follow:
        models.update(models or await _models_of(registry))
        ender = SessionEnder(registry, sessions, clock, models)
        await ender.sweep()
        return ender.follow

    await mirrored(registry, partial(opened, broker), compared, FailureLog(log, "broker-sessions"))


class SessionEnder:
    def __init__(self, registry: Registry, sessions: Sessions, clock: Clock, models: dict[str, Model]) -> None:
        """`models`: as the broker's sessions were last compared with them; kept over interruptions."""
        self._registry, self._sessions, self._clock = registry, sessions, clock
        self._models = models
        self._model_has_changed = asyncio.Event()
        self._model_has_changed.set()  # one may have, during an interruption
        self._free = asyncio.Semaphore(AT_ONCE_MAX)
        self._ended: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        """Until when to wait, and whose sessions to end once more; in order."""

    async def sweep(self) -> None:
        """End each session of the broker that may not be. Raises: Unavailable."""
        async with aclosing(self._sessions.names()) as pages:
            async for names in pages:
                for name in set(map(device_of, names)):
                    if await self._is_refused(name):
                        await self._end(name, "found")

    async def _end_narrowed(
        self, before: Mapping[str, Model], now: Mapping[str, Model], but: Collection[str]
    ) -> set[str]:
        """End sessions of devices, `but` some, that have lost a right from models as `before` to models as `now`.

        Returns whose. Raises: Unavailable.
        """
        ended = set[str]()
        changed = {name for name, model in before.items() if now.get(name) not in (None, model)}
        if not changed:
            return ended
        async with aclosing(self._sessions.names()) as pages:
            async for names in pages:
                for name in set(map(device_of, names)).difference(but, ended):
                    device = await self._registry.device(name)
                    if device is None or device.model not in changed:
                        continue
                    if has_lost(device, before[device.model], now[device.model]):
                        await self._end(name, "narrowed")
                        ended.add(name)
        return ended

    async def follow(self, newest: int) -> None:
        """Follow the events after `newest`, until something fails. Raises: Unavailable."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sweep_again())
                tasks.create_task(self._end_again())
                tasks.create_task(self._compare_models(tasks))
                async with aclosing(self._registry.follow(newest)) as events:
                    async for event in events:
                        if event.kind == EventKind.CREDENTIAL_ISSUED:
                            await self._learn_model(event.subject)
                            continue
                        match changed := decode_event(event):
                            case DistrustChanged():
                                await self.sweep()
                                tasks.create_task(self._sweep_later())
                            case ModelChanged():
                                self._model_has_changed.set()
                            case _ if await self._ends(changed):
                                await self._free.acquire()
                                tasks.create_task(self._end_soon(event.subject))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _ends(self, changed: RightChanged | None) -> bool:
        """Whether it ends sessions of its device."""
        match changed:
            case DeviceStateChanged():
                return changed.state not in IN_SERVICE
            case SessionKicked():
                return True
            case DeviceTagged(device_id):
                device = await self._registry.device(device_id)
                model = await self._registry.model(device.model) if device is not None else None
                return model is not None and depends_on_tags(model)
            case CredentialEnded():
                # A device whose certificate was revoked may connect with another.
                return await has_revoked(self._registry, changed)
        return False

    async def _is_refused(self, name: str) -> bool:
        """Whether `name` is a device that is not admitted now."""
        device = await self._registry.device(name)
        return device is not None and not await is_admissible(self._registry, device.id, self._clock())

    async def _end_soon(self, name: str) -> None:
        try:
            await self._end(name, "ended")
        finally:
            self._free.release()
        self._ended.put_nowait((asyncio.get_running_loop().time() + AGAIN_SECONDS, name))

    async def _end(self, name: str, outcome: str) -> None:
        await self._sessions.end(name)
        log_event(log, logging.INFO, "broker-sessions", outcome=outcome, device=name)

    async def _end_again(self) -> None:
        """What was admitted at the moment of the change."""
        while True:
            due, name = await self._ended.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if await self._is_refused(name):
                await self._sessions.end(name)

    async def _sweep_again(self) -> None:
        await self._sweep_later()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def _sweep_later(self) -> None:
        """RabbitMQ may list a session some seconds after it began."""
        await asyncio.sleep(AGAIN_SECONDS)
        await self.sweep()

    async def _compare_models(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._model_has_changed.wait()
            self._model_has_changed.clear()
            before, now = dict(self._models), await _models_of(self._registry)
            ended = await self._end_narrowed(before, now, ())
            self._models.update(now)
            tasks.create_task(self._end_narrowed_later(before, now, ended))

    async def _learn_model(self, holder: str) -> None:
        """A model is added without an event; its devices have no session before they have a certificate."""
        device = await self._registry.device(holder)
        if device is None or device.model in self._models:
            return
        if (model := await self._registry.model(device.model)) is not None:
            self._models[model.name] = model

    async def _end_narrowed_later(
        self, before: Mapping[str, Model], now: Mapping[str, Model], ended: Collection[str]
    ) -> None:
        """What RabbitMQ did not list yet."""
        await asyncio.sleep(AGAIN_SECONDS)
        await self._end_narrowed(before, now, ended)


def has_lost(device: Device, old: Model, new: Model) -> bool:
    """Whether a session that `device` began under `old` may have what `new` does not allow."""
    had, has = (model_of(device, model).rules.mqtt.other_client_ids for model in (old, new))
    return (had and not has) or policy_of(device, new).is_narrower_than(policy_of(device, old))


async def _models_of(registry: Registry) -> dict[str, Model]:
    return {model.name: model for model in await registry.models()}
