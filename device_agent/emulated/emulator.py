"""A board on a pseudo-terminal, to be provisioned like a real one, with injected faults."""

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from device_agent.emulated.board import Hardware, HomeBoard
from device_agent.emulated.pty_port import PtyPort, pty_port
from device_agent.signals import Waker
from fleet.wire.serial.dialogue.device import DeviceDialogue, State

LINGER_SECONDS = 10.0  # after the last answer, in case it was lost and the station retransmits
FRAME = re.compile(rb"\x00[^\x00]+\x00")
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

    def __init__(self, port: PtyPort, power_on: Callable[[], DeviceDialogue], faults: Faults, waker: Waker) -> None:
        self._port = port
        self._waker = waker
        self._power_on = power_on
        self._faults = faults
        self._random = random.Random(faults.seed)  # noqa: S311 - faults, not secrets
        self._answers = 0
        self._start()

    def run(self, *, once: bool) -> bool:
        """Answer stations until the board is provisioned, if `once`, or a signal comes: false then."""
        while not self._waker.signals():
            finished = once and self._dialogue.state is State.FINISHED
            if finished:
                self._port.release()
            data = self._port.read(LINGER_SECONDS if finished else None, self._waker)
            if finished and not data:
                return True
            if data:
                self._answer(data)
        return False

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


def run_emulator(home: Path, link: Path, hardware: Hardware, faults: Faults, *, once: bool) -> int:
    """Serve `link` until done or interrupted; 0, or 1 if interrupted before a board that runs `once` was provisioned.

    Raises: BadConfig, OSError.
    """

    def power_on() -> DeviceDialogue:
        return DeviceDialogue(HomeBoard(home, hardware, lambda: datetime.now(UTC)))

    waker = Waker()
    # No handler raises: an exception that meets a callback of the interpreter is lost there, and the signal with it.
    with waker.catching_signals(), pty_port(link) as port:
        print(f"Board {hardware.serial} is on {link}.", file=sys.stderr, flush=True)
        is_done = EmulatedBoard(port, power_on, faults, waker).run(once=once)
    return 0 if is_done or not once else 1
