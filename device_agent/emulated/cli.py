"""`device-agent emulate`: a board on a pseudo-terminal, to be provisioned like a real one, with injected faults."""

import random
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from device_agent.emulated.board import Hardware, HomeBoard
from device_agent.emulated.pty_port import PtyPort, pty_port
from device_agent.home_option import pass_home
from fleet.wire.serial.dialogue.device import DeviceDialogue, State
from fleet.wire.serial.messages import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN

LINGER_SECONDS = 10.0  # after the last answer, in case it was lost and the station retransmits
FRAME = re.compile(rb"\x00[^\x00]+\x00")
_DEFAULT = Hardware()
BOOT_LOG = (
    b"\x00\xf8ets Jun  8 2016 00:22:57\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
    b"\x1b[0;32mI (29) boot: 2nd stage bootloader\x1b[0m\r\n"
    b"\x1b[0;33mW (412) storage: no identity, waiting on the serial port\x1b[0m\r\n"
)


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of the board and its line, seeded so that a run can be repeated."""

    boot_log: bool = False
    noise: bool = False
    """A log line before each answer."""
    drop_rate: float = 0.0
    """Share of answers that are not sent."""
    restart_after: int = 0
    """Number of requests after which it restarts, once; 0: never."""
    seed: int = 0


class EmulatedBoard:
    """A board's dialogue on a port, with faults."""

    def __init__(self, port: PtyPort, power_on: Callable[[], DeviceDialogue], faults: Faults) -> None:
        self._port = port
        self._power_on = power_on
        self._faults = faults
        self._random = random.Random(faults.seed)  # noqa: S311 - faults, not secrets
        self._answers = 0
        self._start()

    def run(self, *, once: bool) -> None:
        """Answer stations: until the board is provisioned if `once`, else until interrupted."""
        while True:
            finished = once and self._dialogue.state is State.FINISHED
            if finished:
                self._port.release()
            data = self._port.read(LINGER_SECONDS if finished else None)
            if finished and not data:
                return
            if data:
                self._answer(data)

    def _start(self) -> None:
        self._dialogue = self._power_on()
        if self._faults.boot_log:
            self._port.write(BOOT_LOG)

    def _answer(self, data: bytes) -> None:
        for answer in FRAME.findall(self._dialogue.feed(data)):
            self._answers += 1
            if self._answers == self._faults.restart_after:
                self._start()
                return
            if self._faults.noise:
                self._port.write(b"I (%d) app: heap %d\r\n" % (self._answers * 37, self._random.randrange(1 << 18)))
            if self._random.random() >= self._faults.drop_rate:
                self._port.write(answer)


@click.command()
@click.option(
    "--pty",
    "link",
    required=True,
    type=click.Path(path_type=Path),
    help="Path of the port: a symbolic link to the pseudo-terminal.",
)
@click.option("--hardware-serial", default=_DEFAULT.serial, show_default=True, help="Hardware serial number.")
@click.option("--model", default=_DEFAULT.model, show_default=True, help="Model that the board reports.")
@click.option("--firmware", default=_DEFAULT.firmware, show_default=True, help="Firmware version that it reports.")
@click.option(
    "--chunk-size",
    type=click.IntRange(CHUNK_SIZE_MIN, CHUNK_SIZE_MAX),
    default=_DEFAULT.chunk_size_max,
    show_default=True,
    help="Octets of data that the board accepts in one message.",
)
@click.option("--once", is_flag=True, help="Exit once provisioned. Otherwise run until interrupted.")
@click.option("--boot-log", is_flag=True, help="Write a boot log to the line at start.")
@click.option("--noise", is_flag=True, help="Write a log line before each answer.")
@click.option("--drop-rate", type=click.FloatRange(0, 0.9), default=0.0, help="Share of answers that are lost.")
@click.option("--restart-after", type=click.IntRange(0), default=0, help="Restart once, after this number of requests.")
@click.option("--seed", type=int, default=0, help="Seed of the losses, to repeat a run.")
@pass_home
def emulate(
    home: Path,
    link: Path,
    hardware_serial: str,
    model: str,
    firmware: str,
    chunk_size: int,
    once: bool,
    boot_log: bool,
    noise: bool,
    drop_rate: float,
    restart_after: int,
    seed: int,
) -> None:
    """Emulate a board on a serial port, to be provisioned by fleet-station.

    The board keeps its state in --home. Once provisioned, it is a device's home: `device-agent run`.
    """
    hardware = Hardware(hardware_serial, model, firmware, chunk_size)
    faults = Faults(boot_log, noise, drop_rate, restart_after, seed)
    raise SystemExit(run_emulator(home, link, hardware, faults, once=once))


def run_emulator(home: Path, link: Path, hardware: Hardware, faults: Faults, *, once: bool) -> int:
    """Serve `link` until done or interrupted; 0, or 1 if interrupted before a board that runs `once` was provisioned.

    Raises: BadConfig, OSError.
    """

    def power_on() -> DeviceDialogue:
        return DeviceDialogue(HomeBoard(home, hardware, lambda: datetime.now(UTC)))

    signal.signal(signal.SIGTERM, _stop)
    try:
        with pty_port(link) as port:
            print(f"Board {hardware.serial} is on {link}.", file=sys.stderr, flush=True)
            EmulatedBoard(port, power_on, faults).run(once=once)
    except KeyboardInterrupt:
        return 1 if once else 0
    return 0


def _stop(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
