"""A served fleet for tests: `fleet init` and `fleet serve` as processes of their own, on free loopback ports."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from device_agent.cli import cli as agent_main
from fleet.ca.keys import generate_key
from fleet.cli import main as fleet_main
from fleet.demo.harness import Running
from fleet.wire.csr import build_csr
from fleet.wire.est import encode_body
from tests import server_logs
from tests.forks import Forked
from tests.free_ports import free_ports
from tests.waiting import PATIENCE_SECONDS

ANY_PORTS = ("--est", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0")


def same_ports() -> tuple[str, ...]:
    """As ANY_PORTS, for a server that is started again: its clients find it where it was."""
    est, mqtt, http = (f"127.0.0.1:{port}" for port in free_ports(3))
    return ("--est", est, "--mqtt", mqtt, "--http", http)


def run_fleet(home: Path, *words: str, expect: int = 0, give: str | None = None) -> str:
    """What `fleet WORDS` prints with FLEET_HOME set. It runs in this process, which saves an interpreter's start."""
    return _in_process(fleet_main, words, expect, give, FLEET_HOME=str(home))


def run_agent(home: Path, *words: str, expect: int | None = 0, give: str | None = None) -> str:
    """The same for `device-agent --home HOME WORDS`."""
    return _in_process(agent_main, ("--home", str(home), *words), expect, give)


def _in_process(
    program: click.Command, words: Sequence[str], expect: int | None, give: str | None, **environment: str
) -> str:
    invoke = partial(CliRunner().invoke, program, words, input=give, env=environment)
    with ThreadPoolExecutor(1) as apart:  # a command has an event loop of its own, and so has an asynchronous test
        done = apart.submit(invoke).result() if _has_event_loop() else invoke()
    assert expect is None or done.exit_code == expect, f"{words}: {done.exit_code}\n{done.output}{done.exception}"
    return done.stdout


def _has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def program(
    module: str, *words: str, home: Path | None = None, expect: int | None = 0, give: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of our programs, by module, to its end, and hold it to its exit code (None: any)."""
    environment = dict(os.environ) | ({"FLEET_HOME": str(home)} if home else {})
    stdin = subprocess.DEVNULL if give is None else subprocess.PIPE
    with Forked(
        *(module, *words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            stdout, stderr = process.communicate(give, timeout=600)
        except BaseException:
            process.kill()
            raise
    code = process.wait()
    assert expect is None or code == expect, f"{module} {words}: {code}\n{stdout}{stderr}"
    return subprocess.CompletedProcess(words, code, stdout, stderr)


def start(name: str, *words: str) -> Running:
    """Start `python WORDS` in the background, to be read line by line."""
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    if words[0] == "-m":
        return _read(name, Forked(*words[1:], **options))
    return _read(name, subprocess.Popen([sys.executable, *words], text=True, **options))


class Patient(Running):
    """It waits as long as a busy machine may take: only what never comes is a failure."""

    patience_seconds = float(PATIENCE_SECONDS)
    stop_seconds = 15.0  # `fleet serve` promises five; what does not end by itself takes thirty or for ever


def _read(name: str, process: subprocess.Popen[str]) -> Running:
    running = Patient(name, process)
    server_logs.add(
        name, lambda: "\n".join(line for _, line in running.lines), lambda: running.process.returncode is None
    )
    return running


class Served:
    """One `fleet serve` of a home; ends with the test."""

    def __init__(
        self, home: Path, ready_file: Path, words: Sequence[str] = ANY_PORTS, ready_line: str = "event=ready"
    ) -> None:
        self.home = home
        self.ready_line = ready_line  # logged once the ready file is there
        self.ready_file = ready_file
        self.words = list(words)
        self.endpoints: dict[str, Any] = {}
        self.running: Running | None = None

    def start(self) -> "Served":
        process = Forked(
            "fleet",
            *("serve", "--home", self.home, "--ready-file", self.ready_file, *self.words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            workers_too="--workers" in self.words,
        )
        self.running = _read("fleet serve", process)
        try:
            self.wait_for_line(self.ready_line)
            self.endpoints = json.loads(self.ready_file.read_text())
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self.running is not None
        return self.running.process

    @property
    def log(self) -> str:
        assert self.running is not None
        return "\n".join(line for _, line in self.running.lines)

    def wait_for_line(self, wanted: str) -> None:
        """Return when a line of its log holds `wanted`."""
        assert self.running is not None
        self.running.wait_for(lambda line: wanted in line, wanted)

    @property
    def est(self) -> str:
        return str(self.endpoints["est"])

    @property
    def ca_file(self) -> Path:
        return Path(self.endpoints["ca_file"])

    def address(self, listener: str) -> tuple[str, int]:
        """Host and port of `est`, `mqtt`, `http` or `wss`."""
        host, _, port = str(self.endpoints[listener]).partition("//")[2].partition("/")[0].rpartition(":")
        return host.strip("[]"), int(port)

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.stop()

    def stop(self) -> int:
        """SIGTERM, if it still runs; the exit code."""
        assert self.running is not None
        return self.running.stop()


def asked_to_wait(served: Served, home: Path, name: str, model: str = "default") -> str:
    """The id of a request by which the device `name`, which shows nothing, waits for an operator."""
    run_fleet(home, "model", "set", model, *("--admit", "token"), *("--admit", "station"), *("--admit", "approval"))
    csr = build_csr(generate_key(), (("2.5.4.3", name),), ())
    asked = urllib.request.Request(
        f"{served.est}/.well-known/est/{model}/simpleenroll",
        encode_body(csr),
        {"Content-Type": "application/pkcs10"},
    )
    context = ssl.create_default_context(cafile=str(served.ca_file))
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS, context=context) as answer:
        assert answer.status == 202, answer.status
        assert int(answer.headers["Retry-After"]) > 0
    return str(json.loads(run_fleet(home, "request", "list", "--device", name, "-o", "json"))[0]["id"])


def enroll(served: Served, folder: Path, name: str) -> Path:
    """The certificate of a new device, whose agent has its home in `folder`."""
    run_fleet(served.home, "device", "add", name, "--model", "default")
    token = run_fleet(served.home, "token", "create", "--device", name)
    host, port = served.address("mqtt")
    words = ["--device-id", name, "--est", served.est, "--mqtt", f"{host}:{port}", "--ca", str(served.ca_file)]
    run_agent(folder / name, "init", *words)
    run_agent(folder / name, "enroll", give=token)
    return folder / name / "current/cert.pem"


def interrupted(command: Sequence[str], environment: Mapping[str, str], devices: int) -> dict[str, Any]:
    """What `command`, an act on so many devices with `-o json`, prints when it gets Ctrl-C after its first step has
    begun; it says how far it came, and exits with 1.
    """
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == f"0 of {devices}\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        result: dict[str, Any] = json.loads(process.stdout.read())
        assert process.wait() == 1, said
    assert result["interrupted"]
    assert result["done"] < devices
    assert f"{result['done']} of {devices}. Run it again for the rest." in said
    return result
