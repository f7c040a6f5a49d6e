"""A TPM 2.0 for tests: swtpm, behind a resource manager, as several programs of a device use it at once."""

import os
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS, wait_until

TCTI = "tabrmd:bus_type=session"
SIGN, CREATE = 0x15D, 0x153
"""TPM_CC_Sign and TPM_CC_Create (TPM 2.0 Library, part 2, 6.5.2)."""
PROGRAMS = {
    "swtpm": "swtpm",
    "tpm2-abrmd": "tpm2-abrmd",
    "dbus-daemon": "dbus-daemon",
    "openssl": "openssl",
}


def need_tpm() -> None:
    """Skip the test where a TPM cannot be emulated, and say what is missing."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing or not any(Path("/usr/lib").glob("*/ossl-modules/tpm2.so")):
        pytest.skip(f"{', '.join(missing) or 'tpm2-openssl'}: not installed")


class Tpm:
    """One TPM. Between it and its resource manager, commands can be held back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.seen: list[int] = []
        """The codes of the commands that have reached the TPM."""
        self.held: dict[int, float | threading.Event] = {}
        """By code: how many seconds a command takes longer, or what it waits for."""
        folder.mkdir(parents=True)
        (folder / "state").mkdir()
        chip, self._front = folder / "chip", folder / "front"
        process = self._start(
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder / 'state'}"),
            *("--ctrl", f"type=unixio,path={chip}.ctrl", "--server", f"type=unixio,path={chip}"),
            *("--flags", "not-need-init,startup-clear"),
        )
        wait_until(lambda: _listens(chip), "swtpm does not listen", process)
        Path(f"{self._front}.ctrl").symlink_to(f"{chip}.ctrl")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._front))
        self._listener.listen()
        threading.Thread(target=self._serve, args=(chip,), daemon=True).start()
        bus = folder / "bus"
        process = self._start("dbus-daemon", "--session", "--nofork", f"--address=unix:path={bus}")
        wait_until(lambda: _listens(bus), "dbus-daemon does not listen", process)
        self.environment = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}"}
        self._manager = self.start_manager()

    def start_manager(self) -> subprocess.Popen[bytes]:
        words = ("--allow-root",) if os.getuid() == 0 else ()
        process = self._start("tpm2-abrmd", "--session", *words, f"--tcti=swtpm:path={self._front}")
        self._manager = process
        wait_until(self._answers, "the resource manager does not answer", process)
        return process

    def stop_manager(self) -> None:
        """The TPM is away: nothing answers for it."""
        self._end(self._manager)

    def stop(self) -> None:
        for process in reversed(self._processes):
            self._end(process)
        self._listener.close()

    def _answers(self) -> bool:
        done = subprocess.run(
            ["openssl", "list", "-providers", "-provider", "tpm2"],
            env=os.environ | self.environment | {"TPM2OPENSSL_TCTI": TCTI, "TSS2_LOG": "all+NONE"},
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return done.returncode == 0

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{words[0]}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment()
            )
        self._processes.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | getattr(self, "environment", {}) | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _serve(self, chip: Path) -> None:
        while True:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            with front, socket.socket(socket.AF_UNIX) as back, suppress(OSError, EOFError):
                back.connect(str(chip))
                while True:
                    command = _packet(front)
                    code = int.from_bytes(command[6:10])
                    self.seen.append(code)
                    self._hold(code)
                    back.sendall(command)
                    front.sendall(_packet(back))

    def _hold(self, code: int) -> None:
        match self.held.get(code):
            case threading.Event() as event:
                event.wait(PATIENCE_SECONDS)
            case float() as seconds:
                threading.Event().wait(seconds)


def _packet(stream: socket.socket) -> bytes:
    """One command or response: tag, size, code, and what follows (TPM 2.0 Library, part 1, 18)."""
    data = b""
    while len(data) < 6 or len(data) < int.from_bytes(data[2:6]):
        more = stream.recv(4096)
        if not more:
            raise EOFError
        data += more
    return data


def _listens(file: Path) -> bool:
    """Whether the socket `file` does; it is there before that."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(file)) == 0
