"""A serial port for the length of a run: locked, and opened again when it vanishes because the chip resets."""

import contextlib
import errno
import time
from collections.abc import Callable
from typing import Self

import serial
from serial.tools import list_ports

from firmware_tools.station.errors import LinkError

BAUD_DEFAULT = 115200
REOPEN_SECONDS = 10.0  # a board with native USB is away for 1 to 3 s when it resets
REOPEN_PAUSE_SECONDS = 0.1
WRITE_SECONDS = 5.0  # a full frame at 9600 baud takes 1.1 s

_LOST = (serial.SerialException, OSError)


class SerialLink:
    """An open port. `port` is a device path, or a URL that pyserial knows (`rfc2217://host:4000`, `socket://…`).

    Raises: LinkError (`port-missing`, `port-busy`, `port-failed`).
    """

    def __init__(
        self,
        port: str,
        baud: int = BAUD_DEFAULT,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.port = port
        self.reopened = 0
        self._baud = baud
        self._monotonic = monotonic
        self._pause = pause
        self._serial = self._open()

    def read(self, timeout_seconds: float) -> bytes:
        """What arrives within the time, as soon as there is some; b"" when nothing does, or when the port was lost
        and is open again.

        Raises: LinkError (`port-lost`) when it does not come back within REOPEN_SECONDS.
        """
        try:
            self._serial.timeout = max(0.0, timeout_seconds)
            data: bytes = self._serial.read(1)
        except _LOST:
            self._reopen()
            return b""
        if data:
            with contextlib.suppress(*_LOST):  # the next read finds out
                data += self._serial.read(self._serial.in_waiting)
        return data

    def write(self, data: bytes) -> None:
        """Send `data`. It is lost when the port is: who needs it sends it again.

        Raises: LinkError (`port-lost`).
        """
        if not data:
            return
        try:
            self._serial.write(data)
        except serial.SerialTimeoutException:
            return  # nobody reads at the other end
        except _LOST:
            self._reopen()

    def close(self) -> None:
        """Let the port go."""
        self._serial.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> serial.SerialBase:
        try:
            # `exclusive`: two stations on one port would each read half of the answers.
            return serial.serial_for_url(self.port, baudrate=self._baud, exclusive=True, write_timeout=WRITE_SECONDS)
        except serial.SerialException as error:
            match error.errno:
                case errno.EAGAIN | errno.EBUSY:
                    raise LinkError(
                        "port-busy", f"Port {self.port} is in use.", "Close the program that holds it."
                    ) from error
                case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                    raise LinkError(
                        "port-missing", f"There is no port {self.port}.", "List them: fleet-station ports."
                    ) from error
                case errno.EACCES:
                    raise LinkError(
                        "port-failed",
                        f"Port {self.port} may not be opened by you.",
                        "On most systems the group dialout may.",
                    ) from error
            raise LinkError("port-failed", f"Port {self.port} cannot be opened: {error}.") from error
        except (OSError, ValueError) as error:
            raise LinkError("port-failed", f"Port {self.port} cannot be opened: {error}.") from error

    def _reopen(self) -> None:
        self._serial.close()
        deadline = self._monotonic() + REOPEN_SECONDS
        while True:
            try:
                self._serial = self._open()
            except LinkError as error:
                if self._monotonic() >= deadline:
                    raise LinkError(
                        "port-lost", f"Port {self.port} went away in the middle.", "Check the cable."
                    ) from error
                self._pause(REOPEN_PAUSE_SECONDS)
            else:
                self.reopened += 1
                return


def ports() -> list[dict[str, str]]:
    """The serial ports of this machine: path, what is plugged in, its USB ids and serial number."""
    return [
        {
            "port": port.device,
            "description": "" if port.description == "n/a" else str(port.description),
            "usb": f"{port.vid:04x}:{port.pid:04x}" if port.vid is not None and port.pid is not None else "",
            "usb_serial": str(port.serial_number or ""),
        }
        for port in sorted(list_ports.comports(), key=lambda port: str(port.device))
    ]
