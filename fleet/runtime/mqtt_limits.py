"""The gateway's limits, as fleet.toml says."""

from dataclasses import replace

from fleet.config.settings import READERS, Settings
from fleet.servers.gateway.limits.in_flight import MESSAGE_BYTES
from fleet.servers.gateway.limits.limits import Limits


def mqtt_limits(settings: Settings) -> Limits:
    """Each key of `[mqtt]` is the limit of that name."""
    given = {name: getattr(settings, name) for name in READERS["mqtt"]}
    return Limits(sessions_max=settings.sessions_max, **given)


def of_worker(limits: Limits, workers: int) -> Limits:
    """`limits` for each of so many workers: what all devices may have is divided, down to one message of any size."""
    single = limits.packet_size_max + MESSAGE_BYTES
    in_flight, unread = limits.in_flight_bytes_max, limits.unread_bytes_max
    return replace(
        limits,
        in_flight_bytes_max=min(max(in_flight // workers, single), in_flight),
        unread_bytes_max=min(max(unread // workers, single), unread),
    )
