"""Job: keeps a mosquitto's dynamic-security plugin equal to the registry: a role each model, a client each device.

A device that is suspended, revoked or retired is disconnected at once, and refused. The plugin is compared as a whole
when the job starts and after each interruption, and follows the events in between.
"""

import logging
import ssl
from contextlib import aclosing

from fleet.config.addresses import ControlAddress
from fleet.config.logs import FailureLog, log_event
from fleet.config.settings import Settings
from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialState
from fleet.domain.device import DEVICE_ID, EVERY_DEVICE, FIRST_PLACE, DeviceFilter, place_of
from fleet.domain.errors import FleetError, Invalid
from fleet.domain.ports import Registry
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
from fleet.runtime.background import repeated

log = logging.getLogger("fleet.dynamic_security")

PAGE = 1000


def controlled_broker(home: Home, settings: Settings, broker: ControlAddress) -> ControlledBroker:
    """`broker`, as the settings say. Raises: Invalid: `bad-settings`, `bad-password-file`, `bad-certificate-file`."""
    ca_file = None if settings.dynsec_ca == "system" else home.path / settings.dynsec_ca
    try:
        tls = ssl.create_default_context(cafile=ca_file) if broker.is_tls else None
    except (OSError, ssl.SSLError) as error:
        raise Invalid("bad-certificate-file", f"dynamic_security.ca: {ca_file} cannot be used: {error}.") from error
    password_file = home.path / settings.dynsec_password_file
    if DEVICE_ID.fullmatch(settings.dynsec_user):
        found = f"dynamic_security.user: a device could have the id {settings.dynsec_user!r}"
        message = f"{found}, and administer the broker with it."
        raise Invalid("bad-settings", message, "Name an administrator that begins with an underscore.")
    password_in(password_file)  # a mistake refuses the start
    return ControlledBroker(broker.address, tls, settings.dynsec_user, password_file)


async def mirror_devices(registry: Registry, broker: ControlledBroker) -> None:
    """Mirror until cancelled. A broker or registry that fails is logged, and tried again."""
    failures = FailureLog(log, "dynamic-security")

    async def mirror_while_connected() -> None:
        async with connected(broker) as control:
            mirror = Mirror(registry, control)
            newest = await registry.last_event()  # first: what changes meanwhile is seen again
            changed = await mirror.compare_all()
            _log(logging.INFO, outcome="mirrored", broker=broker.address, changed=changed)
            failures.succeeded()
            async with aclosing(registry.follow(newest)) as events:
                async for event in events:
                    await mirror.apply(event)

    def report(error: FleetError | OSError) -> None:
        code = error.code if isinstance(error, FleetError) else "cannot-reach"
        failures.failed(outcome="failed", code=code, reason=error)

    await repeated(mirror_while_connected, report)


def _log(level: int, **facts: object) -> None:
    log_event(log, level, "dynamic-security", **facts)


class Mirror:
    """The plugin's holdings, as they were read and changed since."""

    def __init__(self, registry: Registry, control: Control) -> None:
        self._registry, self._control = registry, control
        self._present = Holdings({}, {})
        self._others: frozenset[str] = frozenset()
        """Clients of others that no device of ours may be given the place of."""

    async def compare_all(self) -> int:
        """Make the plugin equal to the registry; the number of commands that took."""
        listings = [*await self._listed("listRoles"), *await self._listed("listClients")]
        self._present = holdings_of(listings)
        self._others = impersonable(listings)
        for name in self._others:
            _log(logging.ERROR, outcome="impersonable", client=name, reason="a device with this id has its roles")
        return await self._become(await self._wanted(EVERY_DEVICE))

    async def apply(self, event: Event) -> None:
        """Follow one change of the registry."""
        match event.kind:
            case EventKind.DEVICE_STATE:
                await self._update_device(event.subject)
            case EventKind.CREDENTIAL_ENDED if event.subject in self._present.clients:
                await self._disconnect_if_revoked(event.subject, event.detail)
            case EventKind.MODEL_CHANGED | EventKind.DEVICES_IMPORTED:
                await self._become(await self._wanted(EVERY_DEVICE))

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
        place = FIRST_PLACE
        while devices := await self._registry.devices(where, after=place, limit=PAGE):
            for device in devices:
                if device.id not in self._others:
                    add_device(wanted, device, models[device.model])
            place = place_of(devices[-1], where)
        return wanted

    async def _update_device(self, device_id: str) -> None:
        """Compare what concerns one device."""
        device = await self._registry.device(device_id)
        model = await self._registry.model(device.model) if device is not None else None
        wanted = no_holdings()
        if device is not None and model is not None and device_id not in self._others:
            add_model(wanted, model)
            add_device(wanted, device, model)
        names = {role_of_device(device_id), *wanted.roles}
        present = self._present.only(names, {device_id})
        await self._execute(present, wanted)
        self._present.roles.pop(role_of_device(device_id), None)
        self._present.clients.pop(device_id, None)
        self._present.roles.update(wanted.roles)
        self._present.clients.update(wanted.clients)

    async def _disconnect_if_revoked(self, device_id: str, fingerprint: str) -> None:
        """A device in service whose certificate was revoked may connect with another; a superseded one may go on."""
        for credential in await self._registry.credentials(device_id):
            is_meant = not fingerprint or credential.fingerprint.hex() == fingerprint
            if is_meant and credential.state is CredentialState.REVOKED and self._present.clients[device_id].is_enabled:
                await self._control.execute(disconnecting(device_id))
                return

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
