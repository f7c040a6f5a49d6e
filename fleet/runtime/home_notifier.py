"""How a command at a home reaches devices: by the broker of the home's `fleet serve`, as a client of its own."""

from collections.abc import Awaitable, Callable

from msgspec import Struct
from msgspec.structs import replace

from fleet.config.addresses import parse_broker
from fleet.domain.errors import Unavailable
from fleet.home.layout import Home, settings_of
from fleet.home.node_name import node_name
from fleet.runtime.upstream_access import upstream_access
from fleet.runtime.upstream_in_force import UpstreamInForce, upstream_in_force
from fleet.servers.gateway.broker.mosquitto import SOCKET
from fleet.servers.gateway.broker.publisher import BrokerPublisher
from fleet.servers.gateway.broker.start import external_broker
from fleet.servers.gateway.broker.upstream import SharedUpstream, Upstream
from fleet.services.notifying import Notifier


async def _no_models() -> None:
    """The rules of the broker are those of the server."""


async def _nothing() -> None:
    """There is nothing to close."""


class _Unserved(Struct, frozen=True):
    """Publishes nothing, for want of a broker."""

    home: Home

    async def publish(self, topic: str, payload: bytes) -> bool | None:
        what = f"No `fleet serve` runs at {self.home.path}."
        raise Unavailable("broker-unreachable", what, "Start it, or use --url.")


def home_notifier(home: Home) -> tuple[Notifier, Callable[[], Awaitable[None]]]:
    """It, and what closes its publisher. Raises: Invalid: the settings or their files."""
    if (found := upstream_in_force(home)) is None:
        return Notifier(_Unserved(home)), _nothing
    publisher = BrokerPublisher(_upstream(home, found), logs=False)
    return Notifier(publisher, node_name(home.path) if found.is_ours else ""), publisher.close


def _upstream(home: Home, found: UpstreamInForce) -> Upstream:
    own = SharedUpstream(home.run / SOCKET, speaks_v5=found.speaks_v5, request_models=_no_models)
    if found.is_ours:
        return own
    settings = replace(settings_of(home), upstream=parse_broker(found.address))
    return external_broker(settings.upstream, upstream_access(home, settings)) or own
