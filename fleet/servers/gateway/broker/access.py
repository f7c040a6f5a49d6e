"""The broker as sessions reach it: each gets a connection once the broker knows its device's model."""

import asyncio
from collections.abc import Sequence

from fleet.domain.device import Model
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.probed_upstream import BrokerSilent
from fleet.servers.gateway.broker.upstream import Factory, Upstream, username_of
from fleet.servers.gateway.close_reasons import CloseSession
from fleet.services.admission import Admission


class BrokerAccess:
    def __init__(self, upstream: Upstream, registry: Registry) -> None:
        self.upstream = upstream
        self._registry = registry
        self._setting = asyncio.Lock()
        self._known: frozenset[str] = frozenset()  # models

    @property
    def speaks_v5(self) -> bool:
        return self.upstream.speaks_v5

    def username(self, admission: Admission) -> str:
        """The user name of the device there."""
        return username_of(admission.device, self.upstream)

    async def connect(self, model: str, factory: Factory) -> None:
        """Connect `factory()`. Raises: CloseSession."""
        try:
            if model not in self._known:  # added since the start: there is no event for that
                await self.set_models(await self._registry.models())
            await self.upstream.connect(factory)
        except BrokerSilent as error:
            raise CloseSession(close_reasons.BROKER_SILENT) from error
        except (OSError, TimeoutError, Unavailable) as error:
            raise CloseSession(close_reasons.BROKER_UNREACHABLE) from error

    async def set_models(self, models: Sequence[Model]) -> None:
        """Update the ACLs of a broker that we run. Raises: OSError, TimeoutError."""
        async with self._setting:
            await self.upstream.set_models(models)
            self._known = frozenset(model.name for model in models)
