"""Interface of a measured server: name, availability, start."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hw_bench.certificates import Certificates
from hw_bench.processes import Cores


@dataclass(frozen=True, slots=True)
class Environment:
    """Folder, certificates and cores of one run."""

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

    def new_folder(self, name: str) -> Path:
        """A new folder for one server."""
        path = self.folder / name
        path.mkdir(mode=0o700)
        return path


@dataclass(frozen=True, slots=True)
class Running:
    """A started server."""

    name: str
    version: str
    """Version of the server, and of its TLS library where known."""
    address: tuple[str, int]
    pids: tuple[int, ...]
    """Processes whose CPU time is measured, together with their descendants."""
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
    """Why it cannot run on this machine, or None."""
    start: Callable[[Environment], AbstractContextManager[Running]]
    """Start it on the server's cores; the context manager stops it. Raises: BenchError."""
