"""A fleet home made by `fleet init`, and `fleet serve` running on it: the same commands that an engineer types."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, write_key
from fleet.domain.issuance_context import COMMON_NAME
from fleet.est_client.client import EstClient
from fleet.home.layout import Home
from fleet.wire.csr import build_csr
from hw_bench.certificates import Identity
from hw_bench.peers.contract import Environment, Running
from hw_bench.peers.fleet_tls import version
from hw_bench.processes import BenchError, running, wait_until

MODEL = "default"  # every home has it; its devices publish under devices/{id}/up/
COMMAND_SECONDS_MAX = 60.0
ANY_PORTS = ("--est", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0")


@dataclass(frozen=True, slots=True)
class FleetHome:
    """A home on disk."""

    path: Path

    def fleet(self, *words: str) -> str:
        """Standard output of `fleet WORDS`. Raises: BenchError with its standard error."""
        done = subprocess.run(
            [sys.executable, "-m", "fleet", *words],
            capture_output=True,
            text=True,
            env=dict(os.environ) | {"FLEET_HOME": str(self.path)},
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"fleet {' '.join(words[:2])} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    @property
    def files(self) -> Home:
        """Paths of all files in it."""
        return Home(self.path)

    def write_anchors(self, file: Path) -> Path:
        """Write root and issuing CA into one file, as other servers expect them."""
        file.write_bytes(self.files.root_certificate.read_bytes() + self.files.issuing_certificate.read_bytes())
        return file


@dataclass(frozen=True, slots=True)
class Served:
    """A home with `fleet serve` running on it."""

    home: FleetHome
    est: tuple[str, int]
    mqtt: tuple[str, int]
    pids: tuple[int, ...]
    publish: tuple[str, int] | None = None
    """None: off."""

    def with_others(self, pids: tuple[int, ...]) -> "Served":
        """The same, with the CPU time of `pids` counted too."""
        return replace(self, pids=(*self.pids, *pids))

    def est_server(self, name: str) -> Running:
        """Its EST listener, measured as `name`."""
        return Running(name, version(), self.est, self.pids)


def make_home(environment: Environment, name: str = "home") -> FleetHome:
    """A new home in the environment's folder, without rate limits: all load comes from one address.

    Raises: BenchError.
    """
    home = FleetHome(environment.folder / name)
    home.fleet("init", str(home.path))
    disable_rate_limits(home.files.settings_file)
    return home


def disable_rate_limits(settings_file: Path) -> None:
    """Remove all rate limits, for requests and for failures: the whole load comes from one address."""
    text = settings_file.read_text("utf-8")
    for key in ("connections_per_address", "requests_per_address", "requests_per_credential"):
        text = re.sub(rf"^{key}_per_second = .*$", f"{key}_per_second = 0", text, flags=re.MULTILINE)
    text = re.sub(r"^failures_per_credential_max = .*$", "failures_per_credential_max = 0", text, flags=re.MULTILINE)
    settings_file.write_text(text, "utf-8")


@contextlib.contextmanager
def serve(home: FleetHome, environment: Environment, *words: str) -> Iterator[Served]:
    """`fleet serve` on the server's core, with `words` added to its command line. Raises: BenchError."""
    name = home.path.name
    ready, log = environment.folder / f"{name}-ready.json", environment.folder / f"{name}-serve.log"
    argv = [sys.executable, "-m", "fleet", "serve", "--home", str(home.path), "--ready-file", str(ready)]
    argv += ["--log-level", "warning", *ANY_PORTS, *words]
    with running(argv, cores=environment.server_cores, log=log) as process:
        wait_until(ready.exists, "fleet serve", process, log)
        endpoints: dict[str, Any] = json.loads(ready.read_text())
        published = _address(endpoints["publish"]) if "publish" in endpoints else None
        yield Served(home, _address(endpoints["est"]), _address(endpoints["mqtt"]), (process.pid,), published)


def enroll_devices(home: FleetHome, served: Served, environment: Environment, count: int) -> list[Identity]:
    """Enroll `count` devices over EST, so that the gateway admits them."""
    folder = environment.new_folder("devices")
    token = home.fleet("token", "create", "--model", MODEL, "--uses", str(count)).strip()
    identities = []
    for number in range(count):
        name = f"bench-{number:04d}"
        key = generate_key()
        client = EstClient("https://{}:{}".format(*served.est), home.files.root_certificate, basic=(name, token))
        certificate = client.simpleenroll(build_csr(key, ((COMMON_NAME, name),), ()))
        identity = Identity(name, folder / f"{name}.pem", folder / f"{name}.key")
        identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        write_key(identity.key, key)
        identities.append(identity)
    return identities


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("//")[2].rstrip("/").rpartition(":")
    return host.strip("[]"), int(port)
