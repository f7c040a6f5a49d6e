"""Settings of a running agent: agent.toml and ca.pem, read again on SIGHUP, whole or not at all."""

from operator import attrgetter

from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.config.settings import SETTINGS, Reload
from device_agent.loop.executor import Executor
from device_agent.store.atomic_files import read_file
from fleet.est_client.errors import BadConfig
from fleet.est_client.tls import client_context

_FIXED = [("apps", "apps"), *((each.name, each.field) for each in SETTINGS if each.reload is Reload.RESTART)]
_OF_THE_CONNECTION = [each.field for each in SETTINGS if each.reload is Reload.RECONNECT]


class Settings:
    """`config` is what is in use."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self._anchors = _anchors_of(config)

    def reload(self) -> bool:
        """Read both files again. Whether the connection in use is one of other settings than these.

        Raises: BadConfig: they are not valid, or change what only a restart can change; `config` is as it was.
        """
        fresh = read_config(self.config.home)
        fixed = [name for name, field in _FIXED if attrgetter(field)(fresh) != attrgetter(field)(self.config)]
        if fixed:
            raise BadConfig(f"A restart is needed to change {', '.join(fixed)}; nothing has been changed.")
        client_context(fresh.ca_file)
        anchors = _anchors_of(fresh)
        reconnects = anchors != self._anchors or any(
            attrgetter(field)(fresh) != attrgetter(field)(self.config) for field in _OF_THE_CONNECTION
        )
        self.config, self._anchors = fresh, anchors
        return reconnects


def put_in_force(config: AgentConfig, agent: Executor) -> None:
    """For whatever `agent` does next."""
    agent.ca_file = config.ca_file
    agent.rotation.refused_floor_seconds = agent.schedule.refused_seconds = config.refused_retry_seconds
    agent.schedule.fraction = config.renew_at_fraction
    agent.deployments.use(config.hooks)
    agent.connection.use(config)


def _anchors_of(config: AgentConfig) -> bytes:
    try:
        return read_file(config.ca_file)
    except OSError:
        return b""
