"""Cancels the waiting will of a device that may no longer publish: suspended, revoked, retired, or by its model.

A visit to the broker goes on with the session: the device has returned, and has left in good order (MQTT 5.0,
3.1.3.2.2).
"""

import asyncio
import math
from contextlib import suppress
from functools import partial

from fleet.domain.device import Model
from fleet.domain.errors import Unavailable
from fleet.domain.mqtt_overrides import depends_on_tags
from fleet.domain.ports import Registry
from fleet.domain.registry_events import CredentialEnded, DeviceStateChanged, DeviceTagged, RightChanged, SessionKicked
from fleet.servers.gateway.broker.visit import BrokerVisits, cancel_will
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.session.holders import SessionHolders
from fleet.servers.gateway.tasks import Tasks
from fleet.servers.gateway.wills.waiting import WaitingWill, WaitingWills


class WillCancellation:
    """No session of `holders` is taken over to cancel a will from an earlier connection.

    `after_seconds`: what it takes other gateways of the broker to receive an event as well, and to close their
    sessions; a will that is due earlier is cancelled earlier.
    """

    def __init__(
        self,
        wills: WaitingWills,
        registry: Registry,
        visits: BrokerVisits,
        outcomes: OutcomeLog,
        holders: SessionHolders,
        *,
        after_seconds: float = 0.0,
    ) -> None:
        self.after_seconds = after_seconds
        self._wills = wills
        self._registry = registry
        self._visits = visits
        self._outcomes = outcomes
        self._holders = holders
        self._tasks = Tasks()

    def on_event(self, event: RightChanged | None) -> None:
        """The device's sessions here have been closed. Returns at once: a slow broker must not delay the feed."""
        match event:
            case DeviceStateChanged(device_id, is_active=False):
                for will in self._wills.of_device(device_id, _now()):
                    self._start(will, purges=event.is_out_of_service)
            case CredentialEnded(holder, fingerprint):
                for will in self._wills.of_device(holder, _now()):
                    if fingerprint in (None, will.fingerprint):
                        self._tasks.start(self._look_up(will))
            case SessionKicked(device_id, client_id, publishes_will=False):
                for will in self._wills.of_device(device_id, _now()):
                    if client_id in (None, will.client_id):
                        self._start(will)
            case DeviceTagged(device_id):
                for will in self._wills.of_device(device_id, _now()):
                    self._tasks.start(self._look_up(will))

    def on_model(self, model: Model) -> None:
        """The policy of its devices is now the one of `model`."""
        for will in self._wills:
            if will.device.model != model.name:
                continue
            if depends_on_tags(model):
                self._tasks.start(self._look_up(will))  # its tags may have changed since it was left
            elif not will.allowed_by(model):
                self._start(will)

    def on_events_missed(self) -> None:
        """What has happened to the devices is unknown: ask the registry."""
        for will in self._wills:
            self._tasks.start(self._look_up(will))

    async def cancel_all(self, seconds_max: float) -> int:
        """Cancel every will that waits, before the broker is stopped: it would publish them. How many still wait.

        Those that the broker was asked to discard come last, and are not counted.
        """
        for will in sorted(self._wills, key=lambda will: will.left_in_order):
            self._start(will, at_once=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await self._tasks.ended()
        await self.close()
        return sum(not will.left_in_order for will in self._wills)

    async def close(self) -> None:
        """Give up what is under way; those wills stay at the broker."""
        await self._tasks.close()

    def _start(self, will: WaitingWill, *, purges: bool = False, at_once: bool = False) -> None:
        self._tasks.start(self._cancel(will, purges=purges, at_once=at_once))

    async def _look_up(self, will: WaitingWill) -> None:
        """Cancel it unless the registry says that its device may publish; a certificate may have been superseded."""
        try:
            facts = await self._registry.holder_facts(will.fingerprint)
        except Unavailable:
            facts = None
        model = facts.model if facts is not None and facts.may_connect else None
        if facts is None or model is None or not will.allowed_by(model, facts.device):
            await self._cancel(will)

    async def _cancel(self, will: WaitingWill, *, purges: bool = False, at_once: bool = False) -> None:
        if not at_once:
            await asyncio.sleep(min(self.after_seconds, will.seconds_left(_now()) / 2))
        attempt = partial(self._try, will, purges=purges, asks=not at_once)
        await self._visits.until_done(attempt, tries_max=1 if at_once else math.inf)

    async def _try(self, will: WaitingWill, *, purges: bool, asks: bool) -> bool:
        """Whether there is nothing left to do for it. `asks`: whether the other gateways go on meanwhile."""
        device_id = will.device.id
        if not self._waits(will):
            return True
        if self._holders.holds(will.client_id):
            return False  # until the broker's CONNACK says whether it is back
        is_held = await self._holders.is_held_elsewhere(will.client_id) if asks else False
        if is_held is None:
            return False
        if is_held:
            self._wills.drop(will.client_id)
            self._outcomes.record("mqtt.will", "returned", _now(), device=device_id)
            return True
        expiry = 0.0 if purges else will.session_ends_at - _now()
        done = await cancel_will(self._visits.upstream, will.device, expiry, will.other_client_id)
        if done and self._waits(will):
            self._wills.drop(will.client_id)
        self._outcomes.record("mqtt.will", "cancelled" if done else "failed", _now(), device=device_id)
        return done

    def _waits(self, will: WaitingWill) -> bool:
        """False: its device has returned, or it has been published."""
        return self._wills.of_client(will.client_id, _now()) is will


def _now() -> float:
    return asyncio.get_running_loop().time()
