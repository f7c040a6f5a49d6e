"""`fleet-station` as the operator runs it: an emulated board on a pty, the served fleet with its real EST server."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from device_agent.config.agent_config import read_config
from device_agent.emulated.pty_port import pty_port
from firmware_tools.station_cli import advice_on, exit_code, main
from fleet.est_client.errors import EstBadAnswer, EstBusy, EstError, EstRefused, EstUnreachable, EstUntrusted
from fleet.wire.serial.dialogue.errors import DialogueError, NoAnswer
from fleet.wire.serial.messages import FailureCode
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.wild_servers import answers, http, tls_server
from tests.firmware_tools.boards import DEADLINE_SECONDS, board
from tests.serving import Served, run_fleet

pytestmark = pytest.mark.usefixtures("forked_programs")
PROGRAM = (sys.executable, "-m", "firmware_tools.station_cli")


@dataclass
class Factory:
    """A served fleet with a station for two models."""

    serving: Served
    station: Path
    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def command(self, *words: str | Path, est: str = "", ca: Path | None = None) -> list[str]:
        files = ("--cert", self.station / "station.pem", "--key", self.station / "station.key")
        options = ("--est", est or self.serving.est, *files, "--ca", ca or self.station / "ca.pem")
        return [
            str(word)
            for word in (*PROGRAM, "provision", *options, "--ledger", self.ledger, "--retransmit", "0.2", *words)
        ]

    def run(
        self, *words: str | Path, expect: int = 0, est: str = "", ca: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words, est=est, ca=ca),
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_SECONDS,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def refuses(self, *words: str | Path, expect: int, est: str = "") -> str:
        """What it says on standard error when it ends before it opens the port: in this process."""
        done = CliRunner().invoke(main, self.command(*words, est=est)[len(PROGRAM) :])
        assert done.exit_code == expect, done.output
        return done.stderr

    def device(self, name: str) -> dict[str, Any]:
        return dict(json.loads(run_fleet(self.serving.home, "device", "show", name, "-o", "json")))

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("factory") / "home"
    run_fleet(home, "init", str(home), "--name", "acme")
    run_fleet(home, "model", "add", "pump")
    run_fleet(home, "model", "add", "valve")
    serving = Served(home, home.parent / "ready.json").start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def station(served: Served) -> Path:
    folder = served.home.parent / "station"
    run_fleet(served.home, "station", "add", "line-1", "--model", "pump", "--model", "valve", "--out", str(folder))
    return folder


@pytest.fixture
def factory(served: Served, station: Path, tmp_path: Path) -> Factory:
    return Factory(served, station, tmp_path)


def test_from_a_blank_board_to_a_device_of_the_fleet(factory: Factory, tmp_path: Path) -> None:
    port = tmp_path / "port"
    with board(tmp_path / "home", port, "--once", "--boot-log", "--hardware-serial", "SN-1") as process:
        words = ("--port", port, "--device-id", "cli-1", "--model", "pump", "--mqtt", "mqtt.example:8884", "-o", "json")
        done = factory.run(*words)
        assert process.wait(DEADLINE_SECONDS) == 0
    row = json.loads(done.stdout)
    assert (row["event"], row["device_id"], row["hardware_serial"]) == ("provisioned", "cli-1", "SN-1")
    assert row["station"] == "line-1"
    assert factory.rows()[-1] == row
    shown = factory.device("cli-1")
    assert (shown["model"], shown["state"], shown["hardware_serial"]) == ("pump", "active", "SN-1")
    assert row["fingerprint"] in json.dumps(shown)
    config = read_config(tmp_path / "home")
    assert (config.est_url, config.mqtt_host, config.mqtt_port) == (factory.serving.est, "mqtt.example", 8884)
    assert config.ca_file.read_bytes() == factory.serving.ca_file.read_bytes()
    [leaf, issuing] = x509.load_pem_x509_certificates((tmp_path / "home" / "current" / "cert.pem").read_bytes())
    assert leaf.fingerprint(hashes.SHA256()).hex() == row["fingerprint"]
    leaf.verify_directly_issued_by(issuing)
    assert [each.value for each in leaf.subject] == ["cli-1", "SN-1"]
    steps = [line.split()[2] for line in done.stderr.splitlines()]
    assert steps == ["hello", "hello", "csr", "enroll", "write", "write", "install", "prove", "finish"]
    assert "PRIVATE" not in done.stdout + done.stderr + factory.ledger.read_text()


def test_the_same_board_again_is_the_same_certificate(factory: Factory, tmp_path: Path) -> None:
    port = tmp_path / "port"
    with board(tmp_path / "home", port):
        rows = [
            json.loads(factory.run("--port", port, "--device-id", "cli-2", "--model", "pump", "-o", "json").stdout)
            for _ in range(2)
        ]
        # The device is known now, and so is its model.
        rows.append(json.loads(factory.run("--port", port, "--device-id", "cli-2", "-o", "json").stdout))
    assert len({row["certificate_serial"] for row in rows}) == 1
    assert read_config(tmp_path / "home").mqtt_port == 8883


@pytest.mark.parametrize("step", ["hello", "csr", "enroll", "write", "install", "prove"])
def test_a_station_killed_after_any_step_is_run_again(factory: Factory, tmp_path: Path, step: str) -> None:
    port, words = tmp_path / "port", ("--device-id", f"killed-{step}", "--model", "pump", "-o", "json")
    with board(tmp_path / "home", port):
        process = subprocess.Popen(
            factory.command("--port", port, *words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.split()[2] == step:
                break
        process.kill()
        process.wait(DEADLINE_SECONDS)
        process.stderr.close()
        row = json.loads(factory.run("--port", port, *words).stdout)
    assert len(factory.device(f"killed-{step}")["certificates"]) == 1
    issued = {each["certificate_serial"] for each in factory.rows() if each["event"] == "issued"}
    assert issued <= {row["certificate_serial"]}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_station_tells_the_board_and_exits_130(factory: Factory, tmp_path: Path, by: signal.Signals) -> None:
    with pty_port(tmp_path / "port") as port:
        process = subprocess.Popen(
            factory.command("--port", tmp_path / "port", "--device-id", "never"), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        received = port.read(DEADLINE_SECONDS) or b""  # its Hello
        process.send_signal(by)
        complaints = process.stderr.read()
        assert process.wait(DEADLINE_SECONDS) == 130
        while data := port.read(0):
            received += data
        process.stderr.close()
    assert "Error: stopped: Stopped by the operator." in complaints
    assert b"Stopped by the operator." in received
    assert factory.rows()[-1]["code"] == "stopped"


def test_refusals_of_the_authority_exit_1(factory: Factory, tmp_path: Path) -> None:
    port = tmp_path / "port"
    with board(tmp_path / "home", port):
        done = factory.run("--port", port, "--device-id", "cli-3", "--model", "default", "-o", "json", expect=1)
        assert "Error: est-refused" in done.stderr
        assert json.loads(done.stdout)["code"] == "est-refused"
        run_fleet(factory.serving.home, "device", "add", "cli-4", "--model", "pump")
        run_fleet(factory.serving.home, "device", "suspend", "cli-4")
        assert "suspended" in factory.run("--port", port, "--device-id", "cli-4", expect=1).stderr
    assert not (tmp_path / "home" / "agent.toml").exists()


def test_a_board_that_is_another_exits_1(factory: Factory, tmp_path: Path) -> None:
    port = tmp_path / "port"
    with board(tmp_path / "home", port, "--hardware-serial", "SN-5", "--model", "rev-b"):
        words = ("--port", port, "--device-id", "cli-5", "--model", "pump")
        assert "wrong-device" in factory.run(*words, "--hardware-serial", "SN-6", expect=1).stderr
        assert "wrong-device" in factory.run(*words, "--board-model", "rev-c", expect=1).stderr
        factory.run(*words, "--hardware-serial", "SN-5", "--board-model", "rev-b")
        other = ("--port", port, "--device-id", "cli-6", "--model", "valve")
        assert "already-provisioned" in factory.run(*other, expect=1).stderr
        factory.run(*other, "--replace")
        assert read_config(tmp_path / "home").device_id == "cli-6"


def test_no_board_and_no_port_exit_3(factory: Factory, tmp_path: Path) -> None:
    words = ("--device-id", "cli-7", "--model", "pump")
    assert "port-missing" in factory.run("--port", tmp_path / "port", *words, expect=3).stderr
    with pty_port(tmp_path / "port"):
        assert "timeout" in factory.run("--port", tmp_path / "port", *words, "--timeout", "1", expect=3).stderr


def test_no_authority_exits_4(factory: Factory, tmp_path: Path) -> None:
    port, words = tmp_path / "port", ("--device-id", "cli-8", "--model", "pump")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"https://127.0.0.1:{unused.getsockname()[1]}"
    with board(tmp_path / "home", port):
        assert "est-unreachable" in factory.run("--port", port, *words, est=nobody, expect=4).stderr
        stranger = tmp_path / "other"
        run_fleet(stranger, "init", str(stranger))
        done = factory.run("--port", port, *words, ca=stranger / "ca" / "root.pem", expect=4)
        assert "est-untrusted" in done.stderr
        factory.run("--port", port, *words)  # and nothing is lost


@pytest.mark.parametrize(
    "words",
    [
        ("--device-id", "a/b", "--port", "x"),
        ("--device-id", "a", "--port", "x", "--mqtt", "no port:x"),
        ("--device-id", "a"),
        ("--device-id", "a", "--port", "x", "--key-type", "ROT13"),
        ("--device-id", "a", "--port", "x", "--cert", "/nowhere"),
    ],
)
def test_wrong_usage_exits_2(factory: Factory, words: tuple[str, ...]) -> None:
    assert factory.refuses(*words, expect=2)
    assert not factory.ledger.exists()


@pytest.mark.parametrize("kind", ["other file", "fifo", "nowhere"])
def test_a_ledger_that_is_none_fails_before_the_port(factory: Factory, tmp_path: Path, kind: str) -> None:
    """The port does not exist: the ledger's error comes first, and so before any certificate."""
    path = tmp_path / "nosuch" / "ledger" if kind == "nowhere" else tmp_path / "bob.password"
    if kind == "other file":
        path.write_text("secret\n")
    elif kind == "fifo":
        os.mkfifo(path)
    words = ("--port", tmp_path / "port", "--device-id", "cli-10", "--model", "pump", "--ledger", path)
    said = factory.refuses(*words, expect=1)
    assert "Error: ledger-failed: " in said
    assert "secret" not in said
    if kind == "other file":
        assert path.read_text() == "secret\n"


def test_another_certificate_is_told_how_a_station_gets_one(factory: Factory, tmp_path: Path) -> None:
    run_fleet(tmp_path / "other", "init", str(tmp_path / "other"))
    run_fleet(tmp_path / "other", "model", "add", "pump")
    run_fleet(tmp_path / "other", "station", "add", "line-1", "--model", "pump", "--out", str(tmp_path / "strange"))
    files = ("--cert", tmp_path / "strange" / "station.pem", "--key", tmp_path / "strange" / "station.key")
    port = tmp_path / "port"
    with board(tmp_path / "home", port):
        words = ("--port", port, "--device-id", "cli-11", "--model", "pump")
        done = factory.run(*words, *files, expect=1)
    assert "est-refused" in done.stderr
    assert "fleet station add" in done.stderr
    assert "token" not in done.stderr


def test_a_wait_for_the_authority_is_shown(factory: Factory, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    busy = http("503 Service Unavailable", b"The webhook is down.", "Content-Type: text/plain", "Retry-After: 1")
    port, words = tmp_path / "port", ("--device-id", "cli-12", "--model", "pump")
    with tls_server(authority, answers(busy, http("403 Forbidden"))) as est, board(tmp_path / "home", port):
        done = factory.run("--port", port, *words, est=f"https://localhost:{est}", ca=authority.ca_file, expect=1)
    assert "s  wait     Waiting for 1 s, as the EST server asks: The webhook is down." in done.stderr


@pytest.mark.parametrize("status", [0, 401, 403])
def test_no_advice_to_a_station_is_about_a_token(status: int) -> None:
    assert "fleet station add" in advice_on(EstRefused("no", "Enroll again with a new token.", status))
    assert advice_on(EstRefused("no, and why", "", status)) == ""


def test_a_bad_url_exits_2(factory: Factory) -> None:
    assert "URL" in factory.refuses("--device-id", "a", "--port", "x", est="http://x", expect=2)


def test_ports_for_programs() -> None:
    done = CliRunner().invoke(main, ["ports", "-o", "json"])
    assert done.exit_code == 0
    assert isinstance(json.loads(done.stdout), list)


def test_a_provisioned_boards_home_is_an_agents_home(factory: Factory, tmp_path: Path) -> None:
    """`device-agent run` connects with what the station wrote, with no other step."""
    port = tmp_path / "port"
    mqtt = "{}:{}".format(*factory.serving.address("mqtt"))
    with board(tmp_path / "home", port, "--once"):
        factory.run("--port", port, "--device-id", "cli-9", "--model", "pump", "--mqtt", mqtt)
    agent = [sys.executable, "-m", "device_agent", "--home", str(tmp_path / "home")]
    process = subprocess.Popen([*agent, "run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        status = [*agent, "status", "--wait-connected", str(DEADLINE_SECONDS), "-o", "json"]
        done = subprocess.run(status, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["connected"] is True
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)


@pytest.mark.parametrize("module", ["firmware_tools.station_cli", "firmware_tools.cli"])
@pytest.mark.parametrize("missing", ["serial", "cobs", "cbor2"])
def test_a_missing_extra_is_named(module: str, missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if module == "firmware_tools.cli" and missing == "serial":
        assert done.returncode == 0  # it needs no port
    else:
        assert done.returncode == 1
        assert f"The Python module {missing} is missing" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EstUnreachable("away"), 4),
        (EstUntrusted("who?"), 4),
        (EstBusy("later"), 4),
        (EstRefused("no"), 1),
        (EstBadAnswer("not for this key"), 1),
        (NoAnswer(FailureCode.STOPPED, ""), 3),
    ],
)
def test_the_exit_code_says_where_to_look(error: EstError | DialogueError, code: int) -> None:
    assert exit_code(error) == code
