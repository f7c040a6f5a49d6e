"""A pseudo-terminal as a board's serial port: the board has one end, the other is reached through a symbolic link.

The port stays open while no station listens: what the board sends is lost then, as on a wire.
"""

import contextlib
import errno
import os
import select
import stat
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from device_agent.signals import Waker
from fleet.est_client.errors import BadConfig

READ_SIZE = 4096
WRITE_PATIENCE_SECONDS = 0.5  # a station that does not read for this long is gone


@dataclass(slots=True)
class PtyPort:
    """The board's end. Raw both ways: no echo, no translation of line ends."""

    master: int
    held: int | None
    """The station's end, held open so that a station's close does not end ours."""

    def read(self, timeout_seconds: float | None, waker: Waker | None = None) -> bytes | None:
        """Data from the station; b"" on timeout or a wake-up, None once the other end is closed."""
        wakes = [] if waker is None else [waker.descriptor]
        readable, _, _ = select.select([self.master, *wakes], [], [], timeout_seconds)
        if self.master not in readable:
            return b""
        try:
            return os.read(self.master, READ_SIZE)
        except OSError as error:
            if error.errno == errno.EIO:  # Linux: the other end is not open
                return None
            raise

    def write(self, data: bytes) -> None:
        """Send `data`. What the buffer does not take in time is lost."""
        while data:
            _, writable, _ = select.select([], [self.master], [], WRITE_PATIENCE_SECONDS)
            if not writable:
                return
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                return

    def release(self) -> None:
        """From now on `read` returns None once the station has closed its end."""
        if self.held is not None:
            os.close(self.held)
            self.held = None


@contextlib.contextmanager
def pty_port(link: Path) -> Iterator[PtyPort]:
    """A new pty whose other end is `link`, a symbolic link that is removed when the block ends.

    Raises: BadConfig if `link` is in use or not a symbolic link; OSError.
    """
    master, held = os.openpty()
    port = PtyPort(master, held)
    try:
        os.set_blocking(master, False)
        tty.setraw(held)
        name = os.ttyname(held)
        _point(link, name)
        try:
            yield port
        finally:
            with contextlib.suppress(OSError):
                # Only ours: another board may have replaced the link.
                if str(link.readlink()) == name:
                    link.unlink()
    finally:
        port.release()
        os.close(master)


def _point(link: Path, name: str) -> None:
    try:
        mode = link.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISLNK(mode):
        raise BadConfig(f"{link} exists, and is not a link.", "Choose another path.")
    # The link of a killed emulator leads nowhere, or to the pty that the kernel has just given to us. A link to any
    # other existing pty is in use.
    if mode is not None and link.exists() and str(link.readlink()) != name:
        raise BadConfig(f"{link} leads to a port that is in use.", "Choose another path, or remove it.")
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(name)
    fresh.rename(link)  # last: a station may open the port as soon as the link exists
