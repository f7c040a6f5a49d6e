"""What a diagnosis is about, and what a check says: values, read once.

patient = Patient.of(config, system)
for check in CHECKS: findings += check(patient)
"""

import enum
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from device_agent.apps.control import ask
from device_agent.config.agent_config import AgentConfig
from device_agent.config.endpoints import Endpoint
from device_agent.doctor.health import ASK_SECONDS_MAX
from device_agent.errors import NotRunning
from device_agent.link.clock import Reading, device_clock
from device_agent.store.identity_store import Identity, IdentityStore
from device_agent.store.locks import AGENT_LOCK
from fleet.est_client.arguments import MQTT_PORT_DEFAULT
from fleet.est_client.errors import ClientError
from fleet.est_client.url import parse_est_url

TIMEOUT_SECONDS = 10.0  # for each exchange with a server
PORTS = {"EST": 8443, "MQTT": MQTT_PORT_DEFAULT}
"""Where a fleet serves what, unless its settings say otherwise."""


class State(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and will not for long, or not as well as it could."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """It needs something that has failed, or is not there."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: State
    detail: str
    """One sentence, without secrets."""
    advice: str = ""
    """The next step, if it is not OK."""


Check = Callable[["Patient"], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Server:
    """One of the device's servers, as it is reached: by TLS."""

    kind: str
    """"EST" or "MQTT"."""
    setting: str
    """Where agent.toml says it: a section and a key."""
    host: str
    port: int
    url: str = ""
    """Of EST."""
    endpoint: Endpoint | None = None
    """Of MQTT."""

    @property
    def port_advice(self) -> str:
        """What to do where another port is meant, or may be."""
        usual = f"; a fleet serves {self.kind} on port {PORTS[self.kind]} unless it is set otherwise"
        is_plain = self.endpoint is None or not self.endpoint.path
        return f"Check {self.setting} in agent.toml{usual if is_plain else ''}."

    def __str__(self) -> str:
        return f"{self.kind} server {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(slots=True)
class Patient:
    """A device's home, and what earlier checks have found out."""

    config: AgentConfig
    reading: Reading
    """Of the device's clock."""
    system: datetime
    """The time by the system's."""
    current: Identity | None
    candidate: Identity | None
    agent: dict[str, object] = field(default_factory=dict)
    """Status of the running agent; {} if none runs."""
    failed: set[Server] = field(default_factory=set)
    """Servers whose name, port or certificate is no use: later checks skip them."""

    @classmethod
    def of(cls, config: AgentConfig, system: datetime) -> "Patient":
        store = IdentityStore(config.home)
        try:
            agent = ask(config.home, {"do": "status"}, ASK_SECONDS_MAX)
        except (NotRunning, TimeoutError, ClientError, ValueError):
            agent = {}
        reading = device_clock(config.home, lambda: system).reading()
        return cls(config, reading, system, store.current(), store.candidate(), agent)

    @property
    def home(self) -> Path:
        return self.config.home

    @property
    def servers(self) -> list[Server]:
        config = self.config
        servers = [Server("EST", "[est] url", *parse_est_url(config.est_url)[:2], url=config.est_url)]
        servers += [Server("EST", "[est] servers", *parse_est_url(url)[:2], url=url) for url in config.est_others]
        for each in config.mqtt_servers:
            setting = "[mqtt] servers" if each in config.mqtt_others else "[mqtt] port"
            servers.append(Server("MQTT", setting, each.host, each.port, endpoint=each))
        return servers

    @property
    def reachable(self) -> list[Server]:
        return [server for server in self.servers if server not in self.failed]

    @property
    def clock_is_set(self) -> bool:
        """Whether dates can be judged by `now`, which need not be the system's time."""
        return self.reading.is_set

    @property
    def now(self) -> datetime:
        return self.reading.now

    @property
    def agent_is_silent(self) -> bool:
        """Whether an agent holds the home's lock and does not answer."""
        return not self.agent and _is_locked(self.home / AGENT_LOCK)

    def fail(self, server: Server, check: str, detail: str, advice: str) -> Finding:
        """The finding, and `server` is skipped from now on."""
        self.failed.add(server)
        return Finding(check, State.FAILED, detail, advice)


def _is_locked(path: Path) -> bool:
    """Whether a process holds a lock on the file. It is not tried: an agent that starts just now would fail."""
    try:
        found = path.stat()
        held = Path("/proc/locks").read_text().split()
    except OSError:
        return False
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}" in held
