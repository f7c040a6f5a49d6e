"""What a worker puts in force at a reload, besides certificates and secrets: its own settings of IN_PLACE."""

import logging

from msgspec import Struct

from fleet.config.logs import log_event, use_log_format
from fleet.config.settings import Settings
from fleet.domain.errors import Invalid
from fleet.home.layout import Home
from fleet.runtime.http_servers import HttpServers
from fleet.runtime.listeners import Listeners
from fleet.runtime.mqtt_limits import mqtt_limits, of_worker
from fleet.runtime.upstream_access import upstream_access
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.servers.gateway.gateway import Gateway
from fleet.services.presence import Presence

log = logging.getLogger("fleet")


class Reloading(Struct, frozen=True):
    """The parts of a worker that have settings."""

    home: Home
    workers: int
    listeners: Listeners
    servers: HttpServers
    gateway: Gateway
    presence: Presence
    upstream: Upstream

    def take_up(self, settings: Settings) -> None:
        """Live sessions go on; what they were promised in CONNACK holds until they connect again."""
        use_log_format(settings.log_format)
        self.listeners.set_limits(settings)
        self.servers.take_up(settings)
        self.gateway.set_limits(of_worker(mqtt_limits(settings), self.workers))
        self.gateway.set_server_reference(settings.server_reference)
        self.presence.sends_events = settings.presence_events
        renew_access(self.upstream, self.home, settings)


def renew_access(upstream: Upstream, home: Home, settings: Settings) -> None:
    """Connections to an external broker prove themselves by the files as they are now, from the next one on; what
    cannot be used leaves the old ones in force.
    """
    if upstream.is_ours:
        return
    try:
        upstream.access = upstream_access(home, settings)
    except Invalid as error:
        log_event(
            log,
            logging.ERROR,
            "upstream-access",
            outcome="failed",
            kept="old",
            reason=error.message,
            advice=error.advice,
        )
