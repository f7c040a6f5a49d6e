"""The gateway's limits, as fleet.toml says."""

from fleet.config.settings import READERS, Settings
from fleet.servers.gateway.limits import Limits


def mqtt_limits(settings: Settings) -> Limits:
    """Each key of `[mqtt]` is the limit of that name."""
    given = {name: getattr(settings, name) for name in READERS["mqtt"]}
    return Limits(sessions_max=settings.sessions_max, **given)
