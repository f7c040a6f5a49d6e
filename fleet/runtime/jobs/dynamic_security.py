"""Job: keeps a mosquitto's dynamic-security plugin equal to the registry: a role each model, a client each device.

A device that is suspended, revoked or retired, or whose newest certificate is distrusted, is disconnected at once, and
refused. The plugin is compared as a whole when the job starts and after each interruption, and follows the events in
between.
"""

import logging
from contextlib import aclosing
from functools import partial

from fleet.config.addresses import ControlAddress
from fleet.config.logs import FailureLog, log_event
from fleet.config.settings import Settings
from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DEVICE_ID, EVERY_DEVICE, FIRST_PLACE, Device, DeviceFilter, Model, place_of
from fleet.domain.distrust import Distrust
from fleet.domain.errors import Invalid
from fleet.domain.ports import Registry
from fleet.domain.registry_events import (
    CredentialEnded,
    DeviceStateChanged,
    DeviceTagged,
    DistrustChanged,
    ModelChanged,
    decode_event,
)
from fleet.dynamic_security.commands import (
    COMMANDS_MAX,
    Holdings,
    Listing,
    add_device,
    add_model,
    batched,
    commands_between,
    disconnecting,
    holdings_of,
    impersonable,
    no_holdings,
    role_of_device,
)
from fleet.dynamic_security.connection import Control, ControlledBroker, connected, password_in
from fleet.home.layout import Home
from fleet.runtime.background import Follow, mirrored
from fleet.runtime.upstream_access import broker_context
from fleet.services.distrust import is_refused
from fleet.services.revocation import has_revoked

log = logging.getLogger("fleet.dynamic_security")

PAGE = 1000


def controlled_broker(home: Home, settings: Settings, broker: ControlAddress) -> ControlledBroker:
    """`broker`, as the settings say. Raises: Invalid: `bad-settings`, `bad-password-file`, `bad-certificate-file`."""
    tls = broker_context(home, settings.dynsec_ca, "dynamic_security.ca") if broker.is_tls else None
    password_file = home.path / settings.dynsec_password_file
    if DEVICE_ID.fullmatch(settings.dynsec_user):
        found = f"dynamic_security.user: a device could have the id {settings.dynsec_user!r}"
        message = f"{found}, and administer the broker with it."
        raise Invalid("bad-settings", message, "Name an administrator that begins with an underscore.")
    password_in(password_file)  # a mistake refuses the start
    return ControlledBroker(broker.address, tls, settings.dynsec_user, password_file)


async def mirror_devices(registry: Registry, broker: ControlledBroker) -> None:
    """Mirror until cancelled. A broker or registry that fails is logged, and tried again."""

    async def compared(control: Control) -> Follow:
        mirror = Mirror(registry, control)
        changed = await mirror.compare_all()
        _log(logging.INFO, outcome="mirrored", broker=broker.address, changed=changed)
        return mirror.follow

    await mirrored(registry, partial(connected, broker), compared, FailureLog(log, "dynamic-security"))


def _log(level: int, **facts: object) -> None:
    log_event(log, level, "dynamic-security", **facts)


class Mirror:
    """The plugin's holdings, as they were read and changed since."""

    def __init__(self, registry: Registry, control: Control) -> None:
        self._registry, self._control = registry, control
        self._present = Holdings({}, {})
        self._others: frozenset[str] = frozenset()
        """Clients of others that no device of ours may be given the place of."""
        self._rules: list[Distrust] = []
        """That refuse certificates: a device's next one may be outside them."""

    async def compare_all(self) -> int:
        """Make the plugin equal to the registry; the number of commands that took."""
        listings = [*await self._listed("listRoles"), *await self._listed("listClients")]
        self._present = holdings_of(listings)
        self._others = impersonable(listings)
        for name in self._others:
            _log(logging.ERROR, outcome="impersonable", client=name, reason="a device with this id has its roles")
        return await self._become(await self._wanted(EVERY_DEVICE))

    async def follow(self, newest: int) -> None:
        """Follow the events after `newest`, until something fails. Raises: Unavailable."""
        async with aclosing(self._registry.follow(newest)) as events:
            async for event in events:
                await self._apply(event)

    async def _apply(self, event: Event) -> None:
        """Follow one change of the registry."""
        match decode_event(event):
            case DeviceStateChanged(device_id) | DeviceTagged(device_id):
                await self._update_device(device_id)
            case CredentialEnded(holder) as ended if holder in self._present.clients:
                if self._rules:
                    await self._update_device(holder)
                # A device in service may connect with another.
                if await has_revoked(self._registry, ended) and self._present.clients[holder].is_enabled:
                    await self._control.execute(disconnecting(holder))
            case ModelChanged() | DistrustChanged():
                await self._become(await self._wanted(EVERY_DEVICE))
            case None if event.kind == EventKind.DEVICES_IMPORTED:
                await self._become(await self._wanted(EVERY_DEVICE))
            case None if event.kind == EventKind.CREDENTIAL_ISSUED and self._rules:
                if event.subject in self._present.clients:
                    await self._update_device(event.subject)

    async def _listed(self, command: str) -> list[Listing]:
        listings: list[Listing] = []
        while True:
            offset = len(listings) * COMMANDS_MAX
            words = {"command": command, "verbose": True, "count": COMMANDS_MAX, "offset": offset}
            [answer] = await self._control.execute([words])
            listings.append(answer.data)
            if offset + COMMANDS_MAX >= answer.data.totalCount:
                return listings

    async def _wanted(self, where: DeviceFilter) -> Holdings:
        wanted, models = no_holdings(), {}
        for model in await self._registry.models():
            models[model.name] = model
            add_model(wanted, model)
        self._rules = [rule for rule in await self._registry.distrusts() if rule.refuses]
        place = FIRST_PLACE
        while devices := await self._registry.devices(where, after=place, limit=PAGE):
            for device in devices:
                if device.id not in self._others:
                    await self._add(wanted, device, models[device.model])
            place = place_of(devices[-1], where)
        return wanted

    async def _add(self, wanted: Holdings, device: Device, model: Model) -> None:
        is_distrusted = await is_refused(self._registry, device, self._rules)
        add_device(wanted, device, model, is_distrusted=is_distrusted)

    async def _update_device(self, device_id: str) -> None:
        """Compare what concerns one device."""
        device = await self._registry.device(device_id)
        model = await self._registry.model(device.model) if device is not None else None
        wanted = no_holdings()
        if device is not None and model is not None and device_id not in self._others:
            add_model(wanted, model)
            await self._add(wanted, device, model)
        names = {role_of_device(device_id), *wanted.roles}
        present = self._present.only(names, {device_id})
        await self._execute(present, wanted)
        self._present.roles.pop(role_of_device(device_id), None)
        self._present.clients.pop(device_id, None)
        self._present.roles.update(wanted.roles)
        self._present.clients.update(wanted.clients)

    async def _become(self, wanted: Holdings) -> int:
        count = await self._execute(self._present, wanted)
        self._present = wanted
        return count

    async def _execute(self, present: Holdings, wanted: Holdings) -> int:
        count = 0
        for batch in batched(commands_between(present, wanted)):
            await self._control.execute(batch)
            count += len(batch)
        return count
