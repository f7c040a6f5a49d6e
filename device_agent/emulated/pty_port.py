"""One end of a pseudo-terminal as a board's serial port, the other end under a name of its own.

A board keeps its port when nobody listens: what it says is lost, as on a wire, and a station may come and go.
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

from fleet.est_client.errors import BadConfig

READ_SIZE = 4096
WRITE_PATIENCE_SECONDS = 0.5  # a station that does not read for so long is not there


@dataclass(slots=True)
class PtyPort:
    """The board's end. Raw both ways: no echo, no line ends changed."""

    master: int
    held: int | None
    """The station's end, held open so that its closing does not end ours."""

    def read(self, timeout_seconds: float | None) -> bytes | None:
        """What has arrived; b"" when nothing has in time, None when the other end is closed for good."""
        readable, _, _ = select.select([self.master], [], [], timeout_seconds)
        if not readable:
            return b""
        try:
            return os.read(self.master, READ_SIZE)
        except OSError as error:
            if error.errno == errno.EIO:  # Linux: nobody has the other end open
                return None
            raise

    def write(self, data: bytes) -> None:
        """Send `data`. What finds no room in time is lost."""
        while data:
            _, writable, _ = select.select([], [self.master], [], WRITE_PATIENCE_SECONDS)
            if not writable:
                return
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                return

    def let_go(self) -> None:
        """From now on `read` tells by None when the station has closed its end."""
        if self.held is not None:
            os.close(self.held)
            self.held = None


@contextlib.contextmanager
def pty_port(link: Path) -> Iterator[PtyPort]:
    """A new pty whose other end is `link`, a symbolic link that goes when the block ends.

    Raises: BadConfig when `link` is in use or not a link; OSError.
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
                # Only ours: another board may have taken the name over.
                if str(link.readlink()) == name:
                    link.unlink()
    finally:
        port.let_go()
        os.close(master)


def _point(link: Path, name: str) -> None:
    try:
        mode = link.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISLNK(mode):
        raise BadConfig(f"{link} is there already, and not a link.", "Name another path.")
    # A link that a killed emulator left leads nowhere, or to the pty that has been given to us now. One that leads to
    # somebody else's is not ours to take.
    if mode is not None and link.exists() and str(link.readlink()) != name:
        raise BadConfig(f"{link} leads to a port that is in use.", "Name another path, or remove it.")
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(name)
    fresh.rename(link)  # with everything set up behind it: whoever finds the link may open it
