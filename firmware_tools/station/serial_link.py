"""A serial port, locked for the length of a run, and reopened if it disappears because the chip resets.

pyserial is imported when a port is opened or listed: on POSIX it needs `termios`.
"""

import contextlib
import errno
import importlib
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Self

from firmware_tools.station.errors import LinkError

BAUD_DEFAULT = 115200
REOPEN_SECONDS = 10.0  # a board with native USB disappears for 1 to 3 s when it resets
REOPEN_PAUSE_SECONDS = 0.1
WRITE_SECONDS = 5.0  # a full frame at 9600 baud takes 1.1 s

if find_spec("serial") is None:
    raise ModuleNotFoundError("No module named 'serial'", name="serial")


class SerialLink:
    """An open port. `port` is a device path, or a URL of pyserial (`rfc2217://host:4000`, `socket://…`).

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
        """Data as soon as it arrives; b"" on timeout, or after the port was lost and reopened.

        Raises: LinkError (`port-lost`) if it does not reappear within REOPEN_SECONDS.
        """
        try:
            self._serial.timeout = max(0.0, timeout_seconds)
            data: bytes = self._serial.read(1)
        except OSError:
            self._reopen()
            return b""
        if data:
            with contextlib.suppress(OSError):  # the next read handles it
                data += self._serial.read(self._serial.in_waiting)
        return data

    def write(self, data: bytes) -> None:
        """Send `data`. It is lost if the port is: the dialogue retransmits.

        Raises: LinkError (`port-lost`).
        """
        if not data:
            return
        try:
            self._serial.write(data)
        except _serial().SerialTimeoutException:
            return  # the other end does not read
        except OSError:
            self._reopen()

    def close(self) -> None:
        """Close the port."""
        self._serial.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        serial = _serial()
        try:
            # `exclusive`: two stations on one port would each read a part of the answers.
            return serial.serial_for_url(self.port, baudrate=self._baud, exclusive=True, write_timeout=WRITE_SECONDS)
        except serial.SerialException as error:
            match error.errno:
                case errno.EAGAIN | errno.EBUSY:
                    raise LinkError(
                        "port-busy", f"Port {self.port} is in use.", "Close the program that uses it."
                    ) from error
                case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                    raise LinkError(
                        "port-missing", f"There is no port {self.port}.", "List them: fleet-station ports."
                    ) from error
                case errno.EACCES:
                    raise LinkError(
                        "port-failed",
                        f"No permission to open port {self.port}.",
                        "On most systems, join the group dialout.",
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
                        "port-lost", f"Port {self.port} disappeared during the run.", "Check the cable."
                    ) from error
                self._pause(REOPEN_PAUSE_SECONDS)
            else:
                self.reopened += 1
                return


def ports() -> list[dict[str, str]]:
    """The serial ports of this machine: path, description, USB ids and USB serial number.

    Raises: LinkError (`port-failed`).
    """
    list_ports = _imported("serial.tools.list_ports")
    return [
        {
            "port": port.device,
            "description": "" if port.description == "n/a" else str(port.description),
            "usb": f"{port.vid:04x}:{port.pid:04x}" if port.vid is not None and port.pid is not None else "",
            "usb_serial": str(port.serial_number or ""),
        }
        for port in sorted(list_ports.comports(), key=lambda port: str(port.device))
    ]


def _serial() -> Any:
    return _imported("serial")


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LinkError(
            "port-failed", f"This system has no serial ports that Python can use: {error.name or module} is missing."
        ) from error
