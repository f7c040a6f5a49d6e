"""Which MQTT server, and which version of MQTT, is tried next. No I/O, no clock."""

from device_agent.config.agent_config import AgentConfig
from device_agent.config.endpoints import Endpoint
from device_agent.core import Setback
from device_agent.link.mqtt_link import MQTT_3, MQTT_5, Lost, Target


class ServerChoice:
    """The servers in their order, from the first again after the last; MQTT 5 first, unless the server refuses it."""

    def __init__(self, config: AgentConfig) -> None:
        self._targets = _targets(config)
        self._index = 0
        """Of the server in use, or to try next."""
        self._tried = 0
        """Servers that have failed in this round, each without a delay after it but the last."""
        self.protocol = MQTT_5
        self._version_refused = False

    def use(self, config: AgentConfig) -> None:
        """Take these settings for the next attempt; from the first server, if they are others."""
        before, self._targets = self.endpoints, _targets(config)
        if self.endpoints != before:
            self._index = self._tried = 0

    @property
    def endpoints(self) -> list[Endpoint]:
        return [Endpoint(each.host, each.port, each.path) for each in self._targets]

    @property
    def target(self) -> Target:
        """The server in use, or to try next."""
        return self._targets[self._index]

    @property
    def server(self) -> str:
        """Its address."""
        return str(self.endpoints[self._index])

    def came_up(self) -> None:
        """A connection is established: a new round begins once it is lost."""
        self._tried = 0

    def lost(self, lost: Lost, was_up: bool) -> bool:
        """Choose after a connection that was lost, or failed. Whether the next server is to be tried at once: after a
        whole round there is the backoff's delay."""
        self._choose_protocol(lost, was_up)
        if was_up or lost.setback is Setback.PROTOCOL:
            self._tried = 0
            return False
        self._index = (self._index + 1) % len(self._targets)
        self._tried += 1
        if lost.setback.is_refusal or lost.setback is Setback.UNUSABLE or self._tried >= len(self._targets):
            self._tried = 0
            return False
        return True

    def _choose_protocol(self, lost: Lost, was_up: bool) -> None:
        other = MQTT_3 if self.protocol == MQTT_5 else MQTT_5
        if lost.setback is Setback.PROTOCOL:
            self._version_refused = self.protocol == MQTT_5
            self.protocol = other
        elif was_up and not self._version_refused:
            self.protocol = MQTT_5
        elif lost.reached and not lost.answered and lost.setback is Setback.NETWORK and not self._version_refused:
            # Some MQTT 3.1.1 servers close on a CONNECT of version 5 without a CONNACK: alternate the versions.
            self.protocol = other


def _targets(config: AgentConfig) -> tuple[Target, ...]:
    return tuple(
        Target(
            server.host,
            server.port,
            config.device_id,
            config.keepalive_seconds,
            config.session_expiry_seconds,
            server.path,
        )
        for server in config.mqtt_servers
    )
