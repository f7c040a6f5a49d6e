"""Root's commands on a home of another user: each runs as that user, in a program that has nothing of root's.

What a home holds is its owner's word, and its settings name libraries that are loaded. So the command is started anew,
in a session of its own: with no terminal but a new one, with pipes for other streams, without root's descriptors,
environment, groups and ids, and with no way to new privileges. This process stays root's: it loads nothing of the home,
and passes on bytes and signals until the command has ended.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_agent.cli.relay import Relay
from device_agent.errors import AgentError
from device_agent.signals import Waker
from device_agent.store.folders import opened_folder

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
_prctl = ctypes.CDLL(None).prctl

KEPT = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR", "COLUMNS", "LINES", "DEVICE_HOME"}
    | {"OPENSSL_CONF", "OPENSSL_MODULES", "TPM2OPENSSL_TCTI", "TSS2_LOG", "SOFTHSM2_CONF"}
)
KEPT_BEGINNINGS = ("LC_", "PYTHON")
"""What is kept of root's environment: it has no secrets, and the owner's process alone goes by it."""


@dataclass(frozen=True, slots=True)
class Owner:
    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    folder: str

    def environment(self, before: Mapping[str, str], *more: str) -> dict[str, str]:
        """What the owner's program gets of root's environment `before`: KEPT, and `more`."""
        names = {*more} | {name for name in before if name in KEPT or name.startswith(KEPT_BEGINNINGS)}
        kept = {name: before[name] for name in names if name in before}
        return kept | {"HOME": self.folder, "USER": self.name, "LOGNAME": self.name}


def other_owner(home: Path) -> Owner | None:
    """The user to become: whose the home is, if we are root and it is not root's.

    Raises: AgentError if it is root's, or not there yet, and another user leads to it: while root's command works, that
    user could put another folder, or a link, in its place. OSError.
    """
    if os.geteuid() != 0:
        return None
    found = None
    if home.exists():
        found = next((each for each in (home.lstat(), home.stat()) if each.st_uid != 0), None)
    if found is None:
        _must_be_led_to_by_root(home)
        return None
    try:
        account = pwd.getpwuid(found.st_uid)
    except KeyError:
        return Owner(found.st_uid, found.st_gid or found.st_uid, (), str(found.st_uid), "/")
    groups = tuple(os.getgrouplist(account.pw_name, account.pw_gid))
    return Owner(found.st_uid, account.pw_gid, groups, account.pw_name, account.pw_dir)


def _must_be_led_to_by_root(home: Path) -> None:
    try:
        os.close(opened_folder(home, Path("/"), {0}))
    except (FileNotFoundError, NotADirectoryError):
        pass  # the way there is root's, and the command says what is missing
    except AgentError as error:
        raise AgentError(
            f"{home} is not for root's commands: {error.message}.",
            "Keep root's home in a folder of root's, as /var/lib; or give it to that user (chown -hR), who may run the "
            "command, too.",
        ) from error


def run_as(owner: Owner, command: Sequence[str], environment: Mapping[str, str], handed: Sequence[int] = ()) -> int:
    """Run `command` as `owner`, with our standard streams relayed and the descriptors `handed`; its exit code.

    Raises: AgentError if it cannot be run. OSError.
    """
    waker = Waker()
    with waker.catching_signals(), Relay.of_standard_streams() as relay:
        process = _started(owner, command, environment, handed, relay)
        try:
            with _watched(process.pid) as exited:
                relay.run(exited, waker, lambda number: _forward(process.pid, number))
        finally:
            if process.poll() is None:
                process.terminate()
        code = process.wait()
    return code if code >= 0 else 128 - code


def _started(
    owner: Owner, command: Sequence[str], environment: Mapping[str, str], handed: Sequence[int], relay: Relay
) -> "subprocess.Popen[bytes]":
    try:
        process = subprocess.Popen(
            command,
            stdin=relay.stdin,
            stdout=relay.stdout,
            stderr=relay.stderr,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
            pass_fds=handed,
            user=owner.uid,
            group=owner.gid,
            extra_groups=owner.groups,
            preexec_fn=_confinement(relay),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise AgentError(
            f"The home belongs to user {owner.name}, who cannot run {command[0]} here: "
            f"{getattr(error, 'strerror', None) or error}.",
            "Install the agent where that user may run it, or run the command as that user.",
        ) from error
    relay.started(process)
    return process


def _confinement(relay: Relay) -> Callable[[], None]:
    """What the child does once it is the owner, before it runs the command."""
    folder = "/"
    with contextlib.suppress(FileNotFoundError):
        folder = str(Path.cwd())

    def confine() -> None:
        # By its path: root's own folder may be below one that the owner cannot enter.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        relay.take_terminal()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)

    return confine


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[int]:
    exited = os.pidfd_open(pid)
    try:
        yield exited
    finally:
        os.close(exited)


def _forward(pid: int, number: int) -> None:
    """The process is not reaped yet: its number is still its own, and its group's."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGINT:  # of a terminal: it is for all that run there
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
