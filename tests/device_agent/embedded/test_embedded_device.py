"""The C device at a served fleet: enrolled, publishing, receiving, rotated, cut off from power, revoked."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from fleet.home.authorities import new_issuing_key
from fleet.home.layout import Home
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.device_agent.embedded.building import HEADERS, SOURCES, STRICT, needed
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.wild_servers import answers, tls_server
from tests.end_to_end.apps_fixtures import Backend
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

NAMES = (f"mcu-{number}" for number in count(1))
ENROLL_CHANGES = 20  # at least: the key, a chain, a record, and erasures
CORE_BYTES_MAX = 12_000  # of our code on a Cortex-M0+, M3 or M4


@pytest.fixture(scope="module")
def served(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path_factory.mktemp("served")
    run_fleet(folder / "home", "init", str(folder / "home"), "--name", "acme")
    run_fleet(folder / "home", "model", "set", "default", "--certificates-per-day", "0")  # one renews at each cut
    serving = Served(folder / "home", folder / "ready.json").start()
    yield serving
    serving.stop()


class Device:
    """One flash, and the program that runs on it."""

    def __init__(self, program: Path, folder: Path, served: Served) -> None:
        self.name, self.flash, self.served = next(NAMES), folder / "flash", served
        est, mqtt = (str(served.address(each)[1]) for each in ("est", "mqtt"))
        self.words: list[str | Path] = [program, self.flash, self.name, est, mqtt, served.ca_file]
        run_fleet(served.home, "device", "add", self.name, "--model", "default")
        self.token = run_fleet(served.home, "token", "create", "--device", self.name).strip()

    def run(self, *words: str, give: str = "", **environment: str) -> str:
        """What it says of the command: `ok`, or why not."""
        done = subprocess.run(
            [*self.words, *words],
            input=give,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env=environment,
            check=False,
        )
        assert done.stderr == ""
        if done.returncode == 9:
            return "cut"
        result: str = done.stdout.rpartition(f"{words[0]}: ")[2].partition(",")[0]
        assert done.returncode == (result != "ok"), done.stdout
        return result

    def enroll(self, **environment: str) -> str:
        return self.run("enroll", give=self.token + "\n", **environment)

    @property
    def generation(self) -> int:
        """That of the newest certificate in flash: in the records, which begin the second and the fourth sector."""
        flash = self.flash.read_bytes()
        found = [flash[at : at + 8] for at in (4096, 3 * 4096)]
        return max(int.from_bytes(each[4:], "big") for each in found if each[:4] == b"FCH1")

    def certificates(self) -> list[str]:
        """The state of each, the oldest first."""
        shown = json.loads(run_fleet(self.served.home, "device", "show", self.name, "-o", "json"))
        return [each["state"] for each in shown["certificates"]]


@pytest.fixture
def device(program: Path, served: Served, tmp_path: Path) -> Device:
    return Device(program, tmp_path, served)


def test_its_life(device: Device) -> None:
    up, down = f"devices/{device.name}/up/t", f"devices/{device.name}/down/go"
    assert device.run("connect") == "not-enrolled"
    assert device.enroll() == "ok"
    assert device.enroll() == "ok"  # and asks for no second one
    running = subprocess.Popen(
        [*device.words, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdin is not None
    assert running.stdout is not None

    def say(line: str) -> None:
        assert running.stdin is not None
        running.stdin.write(line + "\n")
        running.stdin.flush()

    with running, Backend(device.served.home, up) as backend:
        assert "connect: ok" in running.stdout.readline()
        for number in range(2):  # before and after a rotation
            say(f"publish {up} {number}")
            assert backend.next().payload == b"%d" % number
            assert "publish: ok" in running.stdout.readline()
            backend.publish(down, b"x" * 5000)  # more than it takes: acknowledged, and nothing else is held up
            backend.publish(down, b"message %d" % number)
            say("receive")
            assert running.stdout.readline() == f"{down} message {number}\n"
            assert "receive: ok" in running.stdout.readline()
            say("renew")
            assert "renew: ok" in running.stdout.readline()
        said, errors = running.communicate(timeout=PATIENCE_SECONDS)
        assert (running.returncode, errors) == (0, ""), said
    assert device.certificates() == ["superseded", "superseded", "active"]
    run_fleet(device.served.home, "device", "revoke", device.name, "--reason", "lost")
    assert device.run("connect") == "refused"
    assert device.run("renew") == "refused"


def cuts(changes: range) -> Iterator[str]:
    for change in changes:
        for eighths in (0, 4, 8):
            yield f"{change}:{eighths}"


@pytest.mark.long
def test_power_cut_at_any_change_of_flash(program: Path, served: Served, tmp_path: Path) -> None:
    """And again: it ends enrolled with a working pair, and asked for no certificate more."""
    for number, at in enumerate(cuts(range(1, 100))):
        folder = tmp_path / str(number)
        folder.mkdir()
        device = Device(program, folder, served)
        if device.enroll(FLEET_CUT=at) != "cut":
            assert number > 3 * ENROLL_CHANGES
            break
        assert device.enroll() == "ok", at
        assert device.run("connect") == "ok", at
        assert device.certificates() == ["active"], at
    renewed = Device(program, tmp_path, served)
    assert renewed.enroll() == "ok"
    for number, at in enumerate(cuts(range(1, 100))):
        if renewed.run("renew", FLEET_CUT=at) != "cut":
            assert number > 3 * ENROLL_CHANGES
            break
        assert renewed.run("connect") == "ok", at
        assert renewed.run("renew") == "ok", at
        assert renewed.run("connect", FLEET_CUT=f"1:{number % 9}") in ("cut", "ok"), at
        assert renewed.run("connect") == "ok", at
    assert renewed.run("connect") == "ok"
    states = renewed.certificates()
    assert states == ["superseded"] * (len(states) - 1) + ["active"]
    assert renewed.generation == len(states)  # each that was issued has been kept


def test_flash_that_fails_once_costs_no_certificate(device: Device) -> None:
    """The two slots are read first, each in up to four reads: what is not read is not written over."""
    assert device.enroll() == "ok"
    for number in range(1, 6):
        assert device.enroll(FLEET_READ_FAULT=str(number)) in ("ok", "flash")
        assert device.run("renew", FLEET_READ_FAULT=str(number)) == "flash"
        assert device.run("connect", FLEET_READ_FAULT=str(number)) in ("ok", "flash")
    assert device.certificates() == ["active"]
    assert device.run("renew") == "ok"
    assert device.run("renew", FLEET_READ_FAULT="1") == "flash"  # and not FLEET_OK, nor another certificate
    assert device.run("connect", FLEET_READ_FAULT="5") == "ok"  # by the one that was read; the other stays
    assert device.run("connect", FLEET_CHANGE_FAULT="1") == "ok"  # proven, and its predecessor not erased
    before = device.flash.read_bytes()
    assert device.run("connect") == "ok"
    assert device.flash.read_bytes() != before  # erased now
    assert device.run("renew") == "ok"
    assert device.certificates() == ["superseded", "active", "issued"]


@pytest.mark.long
def test_a_new_token_gets_another_certificate_beside_the_one_in_use(device: Device) -> None:
    assert device.enroll() == "ok"
    assert device.run("connect") == "ok"
    token = run_fleet(device.served.home, "token", "create", "--device", device.name)
    assert device.run("enroll-again", give=token, FLEET_CUT="18:4") == "cut"  # within the chain
    assert device.run("connect") == "ok"  # by the first
    assert device.run("enroll-again", give=token) == "ok"
    assert device.run("enroll-again", give=token) == "ok"  # proves what is there, and asks for no third one
    assert device.certificates() == ["superseded", "active"]


@pytest.mark.long
@pytest.mark.parametrize("home_number", range(4))  # the order of CAs in an answer is that of their serial numbers
def test_a_device_that_trusts_the_former_root_alone(program: Path, tmp_path: Path, home_number: int) -> None:
    home = Home(tmp_path / "home")
    run_fleet(home.path, "init", str(home.path), "--name", "acme")
    former = tmp_path / "former.pem"
    former.write_bytes(home.root_certificate.read_bytes())
    for second in range(2):  # the roots certify each other
        new_issuing_key(home, "", datetime.now(UTC) + timedelta(seconds=second), root_too=True)
    serving = Served(home.path, tmp_path / "ready.json").start()
    try:
        device = Device(program, tmp_path, serving)
        device.words[-1] = former
        for command in ("enroll", "connect", "renew", "connect"):
            assert device.run(command, give=device.token) == "ok", command
        assert device.certificates() == ["superseded", "active"]
    finally:
        serving.stop()


def test_a_clock_that_is_not_set_stops_nothing_and_one_that_is_counts(device: Device) -> None:
    assert device.enroll(FLEET_TIME="0") == "ok"
    assert device.run("connect", FLEET_TIME="0") == "ok"
    assert device.run("connect", FLEET_TIME="1000000000") == "ok"  # 2001: before this program was made
    assert device.run("connect", FLEET_TIME="4000000000") == "untrusted"


def test_another_root_is_not_trusted(device: Device, authority: Authority) -> None:
    device.words[-1] = authority.ca_file
    assert device.enroll() == "untrusted"
    device.words[-1] = device.served.ca_file
    assert device.enroll() == "ok"  # the token is not spent


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"HTTP/1.1 202 x\r\nContent-Length: 0\r\nRetry-After: 31536000\r\n\r\n", "busy"),
        (b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", "busy"),
        (b"HTTP/1.1 302 x\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "bad-input"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "bad-input"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "too-large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nAAAA", "network"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nAAAA", "bad-input"),
        (b"x" * 10_000, "too-large"),
        (b"", "network"),
    ],
)
def test_a_server_that_answers_wrongly(
    program: Path, authority: Authority, tmp_path: Path, answer: bytes, result: str
) -> None:
    with tls_server(authority, answers(answer)) as port:
        words: list[str | Path] = [program, tmp_path / "flash", "mcu-0", str(port), "1", authority.ca_file, "enroll"]
        done = subprocess.run(words, input="token\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(f"enroll: {result}, "), done.stdout + done.stderr
    assert "31536000" not in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3", "cortex-m4"])
def test_sizes_on_a_cortex_m(tmp_path: Path, core: str) -> None:
    needed()
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("gcc-arm-none-eabi is not installed")
    if subprocess.run(["arm-none-eabi-cpp"], input=b"#include <stdio.h>", capture_output=True, check=False).returncode:
        pytest.skip("libnewlib-arm-none-eabi is not installed")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "mbedtls").symlink_to(HEADERS)
    options = ("-Os", f"-mcpu={core}", "-mthumb", "-I", SOURCES, '-DMBEDTLS_CONFIG_FILE="mbedtls_config.h"')
    words: list[str | Path] = [
        "arm-none-eabi-gcc",
        *STRICT,
        *options,
        "-isystem",
        tmp_path / "include",
        "-c",
        *SOURCES.glob("*.c"),
    ]
    built = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    said = subprocess.check_output(["arm-none-eabi-size", "-t", *tmp_path.glob("*.o")], text=True)
    print(core, said)
    assert int(said.splitlines()[-1].split()[0]) < CORE_BYTES_MAX
