"""`emulate` as a process on a real pty: its link, its faults, its end; and a station in the same test."""

import os
import signal
import termios
from pathlib import Path

import pytest

from device_agent.config.agent_config import read_config
from device_agent.emulated.pty_port import pty_port
from firmware_tools.station.run import ProvisioningJob, ProvisioningRun
from firmware_tools.station.serial_link import SerialLink
from fleet.est_client.errors import BadConfig
from fleet.wire.serial.dialogue.errors import NoAnswer
from fleet.wire.serial.dialogue.events import ProvisioningOrder, Timing
from tests.firmware_tools.boards import DEADLINE_SECONDS, LocalAuthority, board

pytestmark = pytest.mark.usefixtures("forked_programs")
TIMING = Timing(retransmit=0.1)
ORDER = ProvisioningOrder("pump-7", station="line-1")


def provision(port: Path, authority: LocalAuthority | None = None, order: ProvisioningOrder = ORDER) -> list[str]:
    """The steps of one run."""
    steps: list[str] = []
    job = ProvisioningJob(
        order,
        "pump",
        "https://est.example",
        "mqtt.example",
        8883,
        str(port),
        timeout_seconds=DEADLINE_SECONDS,
        timing=Timing(retransmit=0.1),
    )
    with SerialLink(str(port)) as link:
        ProvisioningRun(
            job,
            link,
            authority or LocalAuthority(),
            report=lambda step, text: steps.append(f"{step} {text}"),
        ).provision()
    return steps


def test_provisioned_once_and_gone(tmp_path: Path) -> None:
    with board(
        tmp_path / "home", tmp_path / "port", "--once", "--hardware-serial", "SN-9", "--model", "valve"
    ) as process:
        steps = provision(tmp_path / "port")
        assert process.wait(DEADLINE_SECONDS) == 0
    assert "hello board SN-9, valve, firmware emulated, blank" in steps
    assert not os.path.lexists(tmp_path / "port")
    assert read_config(tmp_path / "home").device_id == "pump-7"


def test_it_stays_for_one_station_after_another(tmp_path: Path) -> None:
    authority = LocalAuthority()
    with board(tmp_path / "home", tmp_path / "port", "--chunk-size", "64") as process:
        for _ in range(3):
            provision(tmp_path / "port", authority)
        assert process.poll() is None
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0
    assert len(authority.issued) == 1
    assert not os.path.lexists(tmp_path / "port")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_bad_board_on_a_bad_line(tmp_path: Path, seed: str) -> None:
    faults = ("--boot-log", "--noise", "--drop-rate", "0.2", "--restart-after", str(int(seed) * 4), "--seed", seed)
    authority = LocalAuthority()
    with board(tmp_path / "home", tmp_path / "port", "--once", *faults) as process:
        provision(tmp_path / "port", authority)
        assert process.wait(DEADLINE_SECONDS) == 0
    assert len(authority.issued) == 1


def test_the_last_answer_lost_is_given_again(tmp_path: Path) -> None:
    """The board has switched already when its `finished` is lost: it lingers for the station to ask again."""
    with board(tmp_path / "home", tmp_path / "port", "--once", "--drop-rate", "0.5", "--seed", "5") as process:
        provision(tmp_path / "port")
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_station_killed_in_the_middle(tmp_path: Path) -> None:
    authority = LocalAuthority()
    with board(tmp_path / "home", tmp_path / "port"):
        job = ProvisioningJob(ORDER, "pump", "https://e", "m", 1, timeout_seconds=DEADLINE_SECONDS)
        link = SerialLink(str(tmp_path / "port"))

        class Killed(BaseException):
            pass

        def die(step: str, text: str) -> None:
            if step == "install":
                raise Killed

        with pytest.raises(Killed):
            ProvisioningRun(job, link, authority, report=die).provision()
        link.close()
        provision(tmp_path / "port", authority)
    assert len(authority.issued) == 1


def test_stopped_before_it_was_provisioned(tmp_path: Path) -> None:
    with board(tmp_path / "home", tmp_path / "port", "--once") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 1
    assert not os.path.lexists(tmp_path / "port")  # it goes before the process does


def test_a_killed_boards_link_is_taken_over(tmp_path: Path) -> None:
    with board(tmp_path / "home", tmp_path / "port") as process:
        process.kill()
        process.wait(DEADLINE_SECONDS)
        assert os.path.lexists(tmp_path / "port")
        # By now the number of its pty may be another's: let the link lead nowhere for certain.
        (tmp_path / "port").unlink()
        (tmp_path / "port").symlink_to(tmp_path / "gone")
        with board(tmp_path / "home", tmp_path / "port"):
            provision(tmp_path / "port")


def test_a_path_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BadConfig, match="not a link"), pty_port(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "precious"
    with pty_port(tmp_path / "port"):
        with pytest.raises(BadConfig, match="in use"), pty_port(tmp_path / "port"):
            pass
        assert (tmp_path / "port").exists()
    with pytest.raises(OSError, match="No such file"), pty_port(tmp_path / "nowhere" / "port"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_port_is_raw_and_survives_its_station(tmp_path: Path) -> None:
    link = tmp_path / "port"
    every_octet = bytes(range(256))
    with pty_port(link) as port:
        for _ in range(2):
            station = os.open(link, os.O_RDWR | os.O_NOCTTY)
            attributes = termios.tcgetattr(station)
            assert not attributes[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            os.write(station, every_octet)
            received = b""
            while len(received) < 256:
                received += port.read(DEADLINE_SECONDS) or b""
            assert received == every_octet
            port.write(every_octet)
            sent = b""
            while len(sent) < 256:
                sent += os.read(station, 256)
            assert sent == every_octet
            os.close(station)
        assert port.read(0) == b""
        port.write(bytes(100_000))  # nobody listens: lost, and nobody waits
        station = os.open(link, os.O_RDWR | os.O_NOCTTY)
        port.release()
        os.close(station)
        while (last := port.read(DEADLINE_SECONDS)) == b"":
            pass
        assert last is None


def test_a_board_that_is_gone_is_no_answer(tmp_path: Path) -> None:
    with pty_port(tmp_path / "port"), SerialLink(str(tmp_path / "port")) as link:
        timing = Timing(retransmit=0.05, board=0.2)
        job = ProvisioningJob(ORDER, "pump", "https://e", "m", 1, timeout_seconds=DEADLINE_SECONDS, timing=timing)
        with pytest.raises(NoAnswer, match="did not answer Hello"):
            ProvisioningRun(job, link, LocalAuthority()).provision()
