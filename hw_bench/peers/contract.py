"""What every measured server is to the bench: a name, a reason why it may be missing, and a way to start it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hw_bench.certificates import Certificates
from hw_bench.processes import Cores


@dataclass(frozen=True, slots=True)
class Ground:
    """Where one run takes place."""

    folder: Path
    """Empty at the start, private, removed at the end."""
    certificates: Certificates
    cores: Cores

    @property
    def server_cores(self) -> tuple[int, ...]:
        return self.cores.server

    @property
    def load_cores(self) -> tuple[int, ...]:
        return self.cores.load

    def room(self, name: str) -> Path:
        """A new folder for one server."""
        path = self.folder / name
        path.mkdir(mode=0o700)
        return path


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    name: str
    version: str
    """Its own, and its TLS library's where it tells."""
    address: tuple[str, int]
    pids: tuple[int, ...]
    """The processes whose CPU time is its price; what they have started is counted with them."""
    broker: str = ""
    """Of a broker: the Unix socket where a subscriber attaches without TLS."""
    login: Mapping[str, Any] = field(default_factory=dict)
    """Of a CA: what the enrollment driver needs to authenticate."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of server that can be measured."""

    name: str
    about: str
    missing: Callable[[], str | None]
    """Why it can't run here, or None."""
    start: Callable[[Ground], AbstractContextManager[Running]]
    """Start it on the server's cores and stop it at the end of the block. Raises: BenchError."""
