"""A served fleet for tests: `fleet init` and `fleet serve` as processes of their own, on free loopback ports."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READY_SECONDS = 30.0
STOP_SECONDS = 10.0
ANY_PORTS = ("--est", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0")


def fleet(home: Path, *words: str, expect: int = 0, give: str | None = None) -> str:
    """What `fleet WORDS` prints, run as a person would run it with FLEET_HOME set."""
    return program("fleet", *words, home=home, expect=expect, give=give).stdout


def program(
    module: str, *words: str, home: Path | None = None, expect: int | None = 0, give: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of our programs, by module, to its end, and hold it to its exit code (None: any)."""
    environment = dict(os.environ) | ({"FLEET_HOME": str(home)} if home else {})
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        input=give,
        env=environment,
        timeout=120,
        check=False,
    )
    assert expect is None or done.returncode == expect, (
        f"{module} {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done


class Served:
    """One `fleet serve` of a home; ends with the test."""

    def __init__(self, home: Path, ready_file: Path, words: Sequence[str] = ANY_PORTS) -> None:
        self.home = home
        self.ready_file = ready_file
        self.words = list(words)
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoints: dict[str, Any] = {}
        self.log = ready_file.with_suffix(".log")

    def start(self) -> "Served":
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fleet",
                    "serve",
                    "--home",
                    self.home,
                    "--ready-file",
                    self.ready_file,
                    *self.words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self.ready_file.exists():
            ended = self.process.poll()
            assert ended is None, f"fleet serve ended with {ended}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"fleet serve did not get ready:\n{self.log.read_text()}"
            os.sched_yield()
        self.endpoints = json.loads(self.ready_file.read_text())
        return self

    @property
    def est(self) -> str:
        return str(self.endpoints["est"])

    @property
    def ca_file(self) -> Path:
        return Path(self.endpoints["ca_file"])

    def address(self, listener: str) -> tuple[str, int]:
        """Host and port of `est`, `mqtt` or `http`."""
        host, _, port = str(self.endpoints[listener]).rpartition("//")[2].rpartition(":")
        return host.strip("[]"), int(port)

    def stay_on_these_ports(self) -> None:
        """Later starts listen where this one did: a client need not look for us again."""
        self.words = [word for name, address in self._places() for word in (f"--{name}", address)]

    def _places(self) -> list[tuple[str, str]]:
        return [(name, "{}:{}".format(*self.address(name))) for name in ("est", "mqtt", "http")]

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
