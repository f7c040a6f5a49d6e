"""The broker as sessions reach it: each gets a connection once the broker knows its device's model."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from fleet.domain.device import Model
from fleet.domain.errors import Unavailable
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.probed_upstream import BrokerSilent
from fleet.servers.gateway.broker.proxy_header import session_header
from fleet.servers.gateway.broker.upstream import Upstream, username_of
from fleet.servers.gateway.close_reasons import CloseSession
from fleet.servers.gateway.wills.waiting import will_of
from fleet.services.admission import Admission, will_refusal
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect
from fleet.wire.mqtt.properties import Property, Value
from fleet.wire.proxy_protocol import Endpoint

IDENTITY = "fleet-"
"""User properties whose names begin with it are the gateway's: a device's own are removed."""


def _says_identity(one: tuple[int, Value]) -> bool:
    identifier, value = one
    return identifier == Property.USER_PROPERTY and isinstance(value, tuple) and value[0].lower().startswith(IDENTITY)


class BrokerAccess:
    def __init__(self, upstream: Upstream, registry: Registry) -> None:
        self.upstream = upstream
        self._registry = registry
        self._setting = asyncio.Lock()
        self._known: frozenset[str] = frozenset()  # models

    @property
    def speaks_v5(self) -> bool:
        return self.upstream.speaks_v5

    def narrowed(self, admission: Admission, connect: Connect) -> Admission:
        """What of `admission` holds at this broker: no dot, if it takes one in a topic for a slash.

        Raises: CloseSession: the device id, or the will, has one.
        """
        if not self.upstream.access.refuses_dots:
            return admission
        if "." in admission.device.id:
            raise CloseSession(close_reasons.DOT_IN_ID)
        admission = admission.without_dots()
        if will_refusal(will_of(connect), admission.policy, admission.rules):
            raise CloseSession(close_reasons.DOT_IN_WILL)
        return admission

    def proved(self, connect: Connect, admission: Admission) -> Connect:
        """The CONNECT of the device with the gateway's password and, where the broker wants that, its identity."""
        access, properties = self.upstream.access, connect.properties
        if access.sends_identity and connect.version == V5:
            device, serial = admission.device, admission.credential.serial
            identity = {"device": device.id, "model": device.model, "serial": serial}
            properties = (
                *((Property.USER_PROPERTY, (f"{IDENTITY}{name}", value)) for name, value in identity.items()),
                *(each for each in properties if not _says_identity(each)),
            )
        return replace(connect, password=access.password, properties=properties)

    def username(self, admission: Admission) -> str:
        """The user name of the device there."""
        return username_of(admission.device, self.upstream)

    def header(self, admission: Admission, peer: Peer, ends: tuple[Endpoint, Endpoint]) -> bytes:
        """What a session's connection begins with, where the broker gets the device's identity before TLS."""
        return session_header(self.upstream, admission.device, peer, ends)

    async def connect(self, model: str, factory: Factory, header: bytes = b"") -> None:
        """Connect `factory()`, behind `header`. Raises: CloseSession."""
        try:
            if model not in self._known:  # added since the start: there is no event for that
                await self.set_models(await self._registry.models())
            await self.upstream.connect(factory, header)
        except BrokerSilent as error:
            raise CloseSession(close_reasons.BROKER_SILENT) from error
        except (OSError, TimeoutError, Unavailable) as error:
            raise CloseSession(close_reasons.BROKER_UNREACHABLE) from error

    async def set_models(self, models: Sequence[Model]) -> None:
        """Update the ACLs of a broker that we run. Raises: OSError, TimeoutError."""
        async with self._setting:
            await self.upstream.set_models(models)
            self._known = frozenset(model.name for model in models)
