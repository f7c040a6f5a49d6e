"""Root's commands on a home of another user: what that user's program has of root's is nothing."""

import json
import os
import pty
import select
import signal
import socket
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from device_agent.cli import cli, owner
from device_agent.cli.owner import Owner, run_as
from device_agent.errors import AgentError
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.forking import forked
from tests.device_agent.homes import make_home
from tests.device_agent.other_users import let_others_run_python
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
NOBODY = 65534
OWNER = Owner(NOBODY, NOBODY, (NOBODY,), "nobody", "/")
STUFFED = "id > /tmp/pwned\n"

PROBE = f"""
import ctypes, fcntl, json, os, termios
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
def refused(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return ""
def stuff(name):
    terminal = os.open(name, os.O_RDWR)
    for each in {STUFFED!r}:
        fcntl.ioctl(terminal, termios.TIOCSTI, each.encode())
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
above = os.getppid()
print(json.dumps({{
    "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
    "leads": os.getsid(0) == os.getpid(),
    "status": {{name: int(status[name], 16) for name in ("NoNewPrivs", "CapPrm", "CapEff", "CapInh", "CapAmb")}},
    "descriptors": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],
    "environment": sorted(os.environ),
    "terminal": os.ttyname(0) if os.isatty(0) else "",
    "traced": ptrace(16, above, None, None),
    "memory": refused(lambda: open(f"/proc/{{above}}/mem", "rb")),
    "opened": refused(lambda: os.listdir(f"/proc/{{above}}/fd")),
    "signalled": refused(lambda: os.kill(above, 0)),
    "stuffed": [refused(lambda: stuff(f"/dev/{{name}}")) for name in ("tty", "stdin")],
}}), flush=True)
"""


def in_terminal(act: Callable[[], int], keys: str = "", after: str = "") -> tuple[int, str, str]:
    """`act` in a session with a terminal, at which `keys` are typed once `after` is shown: its exit code, what the
    terminal shows, and what is left there to be read."""
    reader, writer = os.pipe()
    child, terminal = pty.fork()
    if child == 0:  # nothing of pytest's may run here
        code = 99
        try:
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            let_others_run_python()
            code = act()
            os.set_blocking(0, False)
            os.write(writer, os.read(0, 4096) if select.select([0], [], [], 0)[0] else b"")
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(code)
    os.close(writer)
    shown = b""
    while True:
        assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], shown
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        shown += data
        if keys and after.encode() in shown:
            os.write(terminal, keys.encode())
            keys = ""
    with os.fdopen(reader) as pipe:
        left = pipe.read()
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode(), left


def python(text: str, **environment: str) -> Callable[[], int]:
    """A program of another user."""
    return lambda: run_as(OWNER, [sys.executable, "-c", text], OWNER.environment(os.environ | environment))


def check_probe(shown: str, *, terminal: bool) -> None:
    found = json.loads(shown)
    assert set(found["ids"]) == {NOBODY}
    assert found["leads"]
    assert found["status"] == {"NoNewPrivs": 1, "CapPrm": 0, "CapEff": 0, "CapInh": 0, "CapAmb": 0}
    assert found["descriptors"] == ["0", "1", "2"]
    assert "TOKEN" not in found["environment"]
    assert found["traced"] == -1
    assert found["memory"] == found["opened"] == "Permission denied"
    assert found["signalled"] == "Operation not permitted"
    assert bool(found["terminal"]) is terminal


def test_it_has_nothing_of_roots_and_a_terminal_of_its_own() -> None:
    def act() -> int:
        os.open("/etc/shadow", os.O_RDONLY)  # as a descriptor that root has inherited
        os.set_inheritable(os.open("/", os.O_RDONLY), True)
        return python(PROBE, TOKEN="secret")()

    code, shown, left = in_terminal(act)
    assert (code, left) == (0, "")
    check_probe(next(line for line in shown.splitlines() if line.startswith("{")), terminal=True)


def test_without_a_terminal_it_has_none() -> None:
    @click.command()
    def command() -> None:
        raise SystemExit(python(PROBE, TOKEN="secret")())

    def act() -> tuple[int, str]:
        let_others_run_python()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        done = CliRunner().invoke(command, [])
        return done.exit_code, done.output

    code, shown = forked(act)
    assert code == 0, shown
    check_probe(shown, terminal=False)


def test_a_hidden_prompt_works_and_the_terminal_is_as_before() -> None:
    def act() -> int:
        before = termios.tcgetattr(0)
        code = python("import getpass; print(getpass.getpass('Token: ')[::-1], flush=True)")()
        return code if termios.tcgetattr(0) == before else 98

    code, shown, left = in_terminal(act, "abc\n", after="Token: ")
    assert (code, left) == (0, "")
    assert "cba" in shown
    assert "abc" not in shown


def test_what_it_writes_does_not_control_roots_terminal() -> None:
    text = "import os; os.write(1, b'\\x1b]0;title\\x07 \\xc2\\x9b2J \\xff\\xc3'); os.write(2, b'\\xa9 done\\n')"
    code, shown, _ = in_terminal(python(text))
    assert code == 0
    assert shown == "\\x1b]0;title\x07 \\x9b2J \\xffé done\r\n"


def test_its_streams_are_relayed_whole_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    """Standard input is a socket, as under sshd: what writes to it would reach root's peer."""
    data = os.urandom(1 << 19)
    text = (
        "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d); sys.stderr.write('e' * 99); sys.exit(7)"
    )
    ours, theirs = socket.socketpair()
    out, err = tmp_path / "out", tmp_path / "err"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            let_others_run_python()
            for number, target in ((0, theirs.fileno()), (1, write_only(out)), (2, write_only(err))):
                os.dup2(target, number)
            ours.close()
            theirs.close()
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = python(text)()
        finally:
            os._exit(code)
    theirs.close()
    ours.sendall(data)
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert out.read_bytes() == data
    assert err.read_text() == "e" * 99


def write_only(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


@pytest.mark.parametrize(("text", "code"), [("signal.pause()", 143), ("sys.exit(signal.sigwait({15}))", 15)])
def test_signals_are_forwarded(text: str, code: int) -> None:
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            let_others_run_python()
            os.dup2(begun, 1)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            mask = "{15}" if "sigwait" in text else "{}"
            code = python(
                f"import signal, sys; signal.pthread_sigmask(0, {mask}); print('ready', flush=True); {text}"
            )()
        finally:
            os._exit(code)
    os.close(begun)
    try:
        assert select.select([ready], [], [], PATIENCE_SECONDS)[0]
        assert os.read(ready, 5) == b"ready"
    finally:
        os.kill(child, signal.SIGTERM)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(ready)
    assert ended == code


def test_a_user_who_cannot_run_the_program_is_told(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(AgentError, match="nobody, who cannot run"):
        run_as(OWNER, [str(program)], {})


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("renew",),
        ("doctor",),
        ("deploy",),
        ("run",),
        ("enroll", "--token-env", "TOKEN"),
        ("reset", "--yes"),
        ("rejected",),
        ("send", "t", "x"),
        ("subscribe", "t"),
        ("request", "t", "x"),
        ("bridge", "mosquitto"),
        ("service", "print"),
        ("service", "status"),
        ("emulate", "--pty", "x"),
    ],
)
def test_every_command_is_the_owners_to_run(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    home = make_home(tmp_path / "home", authority)
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    ran: list[tuple[int, list[str], set[str]]] = []

    def run(whose: Owner, command: list[str], environment: dict[str, str], handed: list[int]) -> int:
        ran.append((whose.uid, command[-len(words) - 2 :], set(environment) & {"TOKEN", "SECRET"}))
        return 5

    monkeypatch.setattr(owner, "run_as", run)
    monkeypatch.setenv("TOKEN", "x")
    monkeypatch.setenv("SECRET", "x")
    assert CliRunner().invoke(cli, ["--home", str(home), *words]).exit_code == 5
    assert ran == [(NOBODY, ["--home", str(home), *words], {"TOKEN"} if "TOKEN" in words else set())]
