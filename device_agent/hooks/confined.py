"""One command, confined: a session and process group, an environment, limits and a deadline of its own.

    problem = run_confined(Confined(("systemctl", "reload", "nginx"), {"DEVICE_ID": "cam-7"}, 30.0))

It inherits no descriptor and no ambient capability, and dies with this process. Its output is dropped, but for the last
line of standard error, which is its explanation.
When it ends, or has to, whatever it left in its group is killed.
"""

import contextlib
import ctypes
import math
import os
import pwd
import resource
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from device_agent.config.hooks import ROOT_ADVICE

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERMINATE_SECONDS = 2.0  # between SIGTERM and SIGKILL
ERROR_SIZE_MAX = 4096  # bytes of standard error that are kept
PIPE_SIZE_MAX = 65536  # what may be left in it at the end
LIMITS = {
    resource.RLIMIT_CORE: 0,  # a core would hold what the process has read
    resource.RLIMIT_NOFILE: 1024,
    resource.RLIMIT_FSIZE: 64 * 1024 * 1024,
    resource.RLIMIT_DATA: 1024 * 1024 * 1024,
}

_PR_SET_PDEATHSIG, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 1, 47, 4  # prctl(2)
_prctl = ctypes.CDLL(None).prctl


@dataclass(frozen=True, slots=True)
class Confined:
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Besides PATH, LANG and HOME, which is all it gets."""
    timeout_seconds: float = 30.0
    user: str = ""
    """Whom it runs as; "" is our own user. Needs root."""


def run_confined(command: Confined, stop: int | None = None) -> str:
    """Run it to its end. What went wrong, in one sentence without a full stop; "" if it exited with 0.

    It is killed after its timeout, and when the descriptor `stop` becomes readable.
    """
    home, identity = "/", {}
    if command.user:
        try:
            account = pwd.getpwnam(command.user)
        except KeyError:
            return f"there is no user {command.user!r}"
        home, groups = account.pw_dir, os.getgrouplist(account.pw_name, account.pw_gid)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    limits = LIMITS | {resource.RLIMIT_CPU: math.ceil(command.timeout_seconds) + 1}

    def confine() -> None:
        for limit, most in limits.items():
            hard = resource.getrlimit(limit)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(limit, (least, least))
        # The unit may have given us capabilities, for owners of copies and users of commands: they end here.
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    try:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": home, **command.environment},
            cwd="/",
            start_new_session=True,
            umask=0o077,
            preexec_fn=confine,
            **identity,
        )
    except PermissionError as error:
        whom = f" as {command.user}: {ROOT_ADVICE}" if command.user and os.geteuid() != 0 else f": {error.strerror}"
        return f"{command.argv[0]} cannot be run{whom}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command.argv[0]} cannot be run: {getattr(error, 'strerror', None) or error}"
    with process:
        return _outcome(process, command.timeout_seconds, stop)


def _outcome(process: "subprocess.Popen[bytes]", timeout_seconds: float, stop: int | None) -> str:
    assert process.stderr  # noqa: S101
    errors = process.stderr.fileno()
    os.set_blocking(errors, False)
    exited = os.pidfd_open(process.pid)
    poll = select.poll()
    for descriptor in (errors, exited, *(() if stop is None else (stop,))):
        poll.register(descriptor, select.POLLIN)
    deadline, problem, text, asked = time.monotonic() + timeout_seconds, "", b"", False
    try:
        while True:
            ready = {number for number, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if errors in ready and not (more := _read(errors)):
                poll.unregister(errors)
            elif errors in ready:
                text = (text + more)[-ERROR_SIZE_MAX:]
            if exited in ready:
                break
            if stop in ready or time.monotonic() >= deadline:
                problem = problem or (
                    "the agent stopped" if stop in ready else f"it took longer than {timeout_seconds:g} s"
                )
                if asked:
                    break
                asked, deadline = True, time.monotonic() + TERMINATE_SECONDS
                if stop is not None:
                    poll.unregister(stop)
                    stop = None
                _kill_group(process.pid, signal.SIGTERM)
    finally:
        # Not reaped yet: its number is still its group's.
        _kill_group(process.pid, signal.SIGKILL)
        os.close(exited)
    for _ in range(PIPE_SIZE_MAX // ERROR_SIZE_MAX):
        text = (text + _read(errors))[-ERROR_SIZE_MAX:]
    code = process.wait()
    if problem or not code:
        return problem
    last = (text.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    how = f"it was ended by signal {-code}" if code < 0 else f"it exited with {code}"
    return f"{how}: {last}" if last else how


def _read(descriptor: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, ERROR_SIZE_MAX)
    return b""


def _kill_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
