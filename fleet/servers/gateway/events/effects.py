"""What the registry's events do to a gateway: sessions close, wills are cancelled, policies are applied."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from fleet.config.logs import log_event
from fleet.domain.changes import Event
from fleet.domain.device import Model
from fleet.domain.distrust import Distrust, refusing
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.domain.registry_events import (
    CredentialEnded,
    CredentialSuperseded,
    DeviceStateChanged,
    DeviceTagged,
    DistrustChanged,
    ModelChanged,
    SessionKicked,
    decode_event,
)
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.events.session_purge import SessionPurger
from fleet.servers.gateway.session.context import SessionContext
from fleet.servers.gateway.session.session import Session
from fleet.servers.gateway.wills.cancellation import WillCancellation
from fleet.services.admission import Admission

log = logging.getLogger("fleet.gateway")

SUPERSEDED_SECONDS_MAX = 600.0  # for a program beside the agent to read the newer certificate, and to connect with it
JUDGED_AT_ONCE = 500  # sessions, 3 ms


class EventEffects:
    """`purger`: None where another process purges the broker's sessions."""

    def __init__(
        self,
        context: SessionContext[Session],
        registry: Registry,
        cancellation: WillCancellation,
        purger: SessionPurger | None,
    ) -> None:
        self._context = context
        self._registry = registry
        self._cancellation = cancellation
        self._purger = purger
        self._distrusts: Sequence[Distrust] = ()
        self._superseded: bytes | None = None  # the certificate that the next event ends
        self._applying = asyncio.Lock()  # in order of the events: the last model counts

    async def on_event(self, event: Event) -> None:
        found = decode_event(event)
        match found:
            case DeviceStateChanged():
                self._on_device_state(found)
            case CredentialSuperseded(fingerprint):
                self._superseded = fingerprint
            case CredentialEnded():
                self._on_credential_ended(found)
            case ModelChanged(name):
                await self._on_model_changed(name)
            case SessionKicked():
                self._on_session_kicked(found)
            case DeviceTagged(device_id):
                self._on_tagged(device_id)
            case DistrustChanged():
                await self._on_distrust_changed()
        self._cancellation.on_event(found)  # its session has been closed above
        if self._purger is not None:
            self._purger.on_event(found)

    def on_events_missed(self) -> None:
        """Events were lost: close all sessions so that clients authenticate again."""
        for session in self._context.open_sessions:
            session.close(close_reasons.EVENTS_MISSED)
        self._cancellation.on_events_missed()

    def _on_device_state(self, changed: DeviceStateChanged) -> None:
        if changed.is_active:
            return
        for session in self._context.open_sessions.of_device(changed.device_id):
            session.close(close_reasons.device_ended(changed.state))
        if changed.is_out_of_service:
            self._context.budgets.session_purged(changed.device_id)
            self._context.kept_filters.session_purged(changed.device_id)

    def _on_credential_ended(self, ended: CredentialEnded) -> None:
        sessions, one = self._context.open_sessions, ended.fingerprint
        is_superseded, self._superseded = one is not None and one == self._superseded, None
        for session in sessions.of_device(ended.holder) if one is None else sessions.of_fingerprint(one):
            admission = session.admission
            if is_superseded and admission is not None and admission.rules.other_client_ids:
                # The device's other programs have not read the newer certificate yet.
                session.close_in(SUPERSEDED_SECONDS_MAX, close_reasons.CREDENTIAL_ENDED)
            else:
                session.close(close_reasons.CREDENTIAL_ENDED)

    def _on_session_kicked(self, kicked: SessionKicked) -> None:
        for session in self._context.open_sessions.of_device(kicked.device_id):
            if kicked.client_id in (None, session.client_id):
                session.close(close_reasons.KICKED_WITH_WILL if kicked.publishes_will else close_reasons.KICKED)

    async def _on_distrust_changed(self) -> None:
        self._distrusts = await self._registry.distrusts()
        for number, session in enumerate(self._context.open_sessions, 1):
            if session.admission is not None and self._covers(session.admission):
                session.close(close_reasons.DISTRUSTED)
            if number % JUDGED_AT_ONCE == 0:
                await asyncio.sleep(0)  # the messages of others are not held up meanwhile
        self._cancellation.on_events_missed()

    async def is_distrusted(self, admission: Admission) -> bool:
        """Whether a rule refuses it that was made since the registry was read for this admission."""
        if not self._covers(admission):
            return False
        self._distrusts = await self._registry.distrusts()  # the rule may have been undone since its event
        return self._covers(admission)

    def _covers(self, admission: Admission) -> bool:
        return refusing(self._distrusts, admission.device.model, admission.credential) is not None

    async def _on_model_changed(self, name: str) -> None:
        for session in self._context.open_sessions:
            session.model_changed()
        model = await self._registry.model(name)
        if model is not None:
            # Not awaited: a broker that is slow to reload must not delay a revocation.
            self._context.spawn(self._apply(model, await self._registry.models()))

    def _on_tagged(self, device_id: str) -> None:
        sessions = self._context.open_sessions.of_device(device_id)
        for session in sessions:
            session.model_changed()  # its admission may have the old tags
        if sessions:
            # Not awaited: where many devices are tagged, a revocation must not wait for all of them.
            self._context.spawn(self._apply_tags(device_id))

    async def _apply_tags(self, device_id: str) -> None:
        async with self._applying:
            try:
                device = await self._registry.device(device_id)
                model = await self._registry.model(device.model) if device is not None else None
            except Unavailable:
                device = model = None
            for session in self._context.open_sessions.of_device(device_id):
                if session.admission is None:
                    continue
                if device is None or model is None:
                    session.close(close_reasons.EVENTS_MISSED)
                else:
                    session.admission = replace(session.admission, device=device)
                    session.set_model(model)
            self._context.outcomes.record("mqtt.tags", "applied", asyncio.get_running_loop().time(), device=device_id)

    async def _apply(self, model: Model, models: Sequence[Model]) -> None:
        async with self._applying:
            # Update the broker's ACLs before our own policy: the broker must not drop a topic that is newly allowed.
            try:
                await self._context.broker.set_models(models)
            except (OSError, TimeoutError) as error:
                log_event(log, logging.ERROR, "broker.rules-not-set", model=model.name, error=error)
            for session in self._context.open_sessions:
                if session.admission is not None and session.admission.device.model == model.name:
                    session.set_model(model)
            self._cancellation.on_model(model)
            self._context.outcomes.record("mqtt.model", "applied", asyncio.get_running_loop().time(), model=model.name)
