"""Programs of ours that begin with everything imported: forked from a process that has imported it once.

Each is a process of its own, with its own arguments, streams, signals and exit code; only the interpreter's start and
the imports, most of a second of processor time, are shared. Starts from nothing are what the demo, the bench and the
tests of exit codes do.

Who wants a program connects to a socket, sends a request with three streams, and is told the program's id and then how
it has ended. A program whose starter has gone is killed.
"""

import asyncio
import atexit
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fleet.cli import COMMANDS

IMPORTED = (
    *("device_agent.run", "device_agent.cli", "firmware_tools.cli", "fleet.demo.steps"),
    *(module for module, _ in COMMANDS.values()),
)
REQUEST_SIZE_MAX = 512 * 1024
NUMBER = struct.Struct("i")
WORKER = "fleet.runtime.worker_main"
ABOVE = 256  # any descriptor that a worker is given
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

SCRIPT = """#!/bin/sh
'''exec' "{python}" -ISE "$0" "$@"
'''
import json, os, signal, socket, struct, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect({path!r})
request = {{"script": {script!r}, "words": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ),
    "programs_too": {programs_too}}}
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
program, = struct.unpack("i", connection.recv(4))
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, frame: os.kill(program, number))
code = os.waitstatus_to_exitcode(struct.unpack("i", connection.recv(4))[0])
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def write_script(file: Path, script: str, *, programs_too: bool = False) -> None:
    """Make `file` a program that is forked to run `script`, MODULE:FUNCTION, as installed programs do.

    With `programs_too`, programs of ours that it starts are forked as well.
    """
    values = {"path": str(_address()), "script": script, "programs_too": programs_too}
    file.write_text(SCRIPT.format(python=sys.executable, **values))
    file.chmod(0o755)


PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
EXECUTE_CHILD = tuple(inspect.signature(subprocess.Popen._execute_child).parameters)[1:]  # type: ignore[attr-defined]
"""How Popen calls the private method that Forked replaces: the same in Python 3.11 to 3.14."""
if missing := {"args", "env", "start_new_session", *PIPES} - set(EXECUTE_CHILD):
    raise ImportError(f"subprocess.Popen of Python {sys.version_info[0]}.{sys.version_info[1]} has no {missing}.")
for replaced in ("_try_wait", "_internal_poll", "_handle_exitstatus", "_close_pipe_fds"):
    if not hasattr(subprocess.Popen, replaced):
        raise ImportError(f"subprocess.Popen of Python {sys.version_info[0]}.{sys.version_info[1]} has no {replaced}.")


class Forked(subprocess.Popen[str]):
    """`python -m MODULE WORDS`, as `subprocess.Popen` would have it; on our processors, with our limits.

    With `workers_too`, its worker processes are forked as well; in /proc they are not seen to be workers.
    """

    _waitpid_lock: threading.Lock
    _handle_exitstatus: Callable[[int], None]

    def __init__(self, module: str, *words: object, workers_too: bool = False, **options: Any) -> None:
        self._workers_too = workers_too
        super().__init__([module, *map(str, words)], **{"text": True, **options})

    # The rest replaces how Popen starts a program and waits for it (Python 3.11 to 3.14).

    def _execute_child(self, *values: Any) -> None:
        given = dict(zip(EXECUTE_CHILD, values, strict=True))
        pipes = [given[name] for name in PIPES]
        request = {
            "words": given["args"],
            "cwd": str(Path.cwd()),
            "environment": dict(given["env"] or os.environ),
            "processors": sorted(os.sched_getaffinity(0)),
            "own_session": given["start_new_session"],
            "workers_too": self._workers_too,
        }
        streams = [given if given != -1 else ours for ours, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.connect(str(_address()))
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        self.pid = self._number()
        self._child_created = True

    def _number(self) -> int:
        data = self._connection.recv(NUMBER.size)
        if not data:
            self.returncode = self.returncode or -signal.SIGKILL
            raise ChildProcessError("the process that forks has died")
        return int(NUMBER.unpack(data)[0])

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        status = self._number()
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


EXECUTE = subprocess.Popen
WITHIN_FLAGS = frozenset({"-P", "-Wignore"})  # where modules come from, and warnings, are as in the process that forks
LEFT_TO_POPEN = frozenset({"cwd", "executable", "pass_fds", "preexec_fn", "process_group", "shell", "umask", "user"})


def fork_or_execute(words: Any, **options: Any) -> "subprocess.Popen[Any]":
    """`subprocess.Popen`, by which `python -m MODULE WORDS` is forked; all else is executed."""
    if isinstance(words, list | tuple) and words[0] == sys.executable and not any(map(options.get, LEFT_TO_POPEN)):
        dash_m, *module_and_words = (word for word in words[1:] if word not in WITHIN_FLAGS)
        if dash_m == "-m":
            return Forked(*module_and_words, **{"text": False, **options})
    return EXECUTE(words, **options)


def executed(module: str, *words: object, workers_too: bool = False, **options: Any) -> "subprocess.Popen[str]":
    """The same from nothing, for what a forked program does not get: limits, and libraries loaded before."""
    del workers_too
    return EXECUTE([sys.executable, "-m", module, *map(str, words)], text=True, **options)


@cache
def _address() -> Path:
    """Where the process that forks listens. It ends with us."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    address = Path(folder.name) / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen(64)
        process = EXECUTE(
            [sys.executable, "-P", "-m", "tests.forks", str(listener.fileno())],
            pass_fds=(listener.fileno(),),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
        )
    assert process.stdin is not None

    def end() -> None:
        process.communicate()
        folder.cleanup()

    atexit.register(end)
    return address


def fork_at_request(listener: socket.socket) -> dict[str, Any]:
    """Fork a program for each request until our starter has gone; returns in the program, which has its streams."""
    while True:
        if sys.stdin.fileno() in select.select([listener.fileno(), sys.stdin.fileno()], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    message, streams, _, _ = socket.recv_fds(connection, REQUEST_SIZE_MAX, 3)
    program = os.fork()
    if program:
        watch(program, streams, connection)
    connection.close()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    request: dict[str, Any] = json.loads(message)
    return request


def watch(program: int, streams: Iterable[int], connection: socket.socket) -> None:
    """Tell the program's id, and how it has ended; it is our child, so that its id stays its own."""
    for stream in (*streams, sys.stdin.fileno()):
        os.close(stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the program's affair
    try:
        connection.send(NUMBER.pack(program))
        ended = os.pidfd_open(program)
        if ended not in select.select([ended, connection.fileno()], [], [])[0]:
            os.kill(program, signal.SIGKILL)
        connection.send(NUMBER.pack(os.waitpid(program, 0)[1]))
    finally:
        os._exit(0)


class Worker:
    """What the supervisor uses of an `asyncio.subprocess.Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._handle = os.pidfd_open(pid)
        self._loop.add_reader(self._handle, self._on_end)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._handle)
        os.close(self._handle)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended.set_result(self.returncode)

    async def wait(self) -> int:
        return int(await asyncio.shield(self._ended))

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def fork_workers() -> bool:
    """From now on a worker of ours is forked as well; returns in each worker too, and then it is true.

    A process that has no threads forks it, and we adopt it: it is our child, as if we had executed it.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = os.getpid()
    forker = os.fork()
    if forker == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        ours.close()
        become_worker(theirs, server)
        return True
    theirs.close()

    def end() -> None:
        if os.getpid() == server:
            ours.close()
            os.waitpid(forker, 0)

    atexit.register(end)
    execute = asyncio.create_subprocess_exec

    async def fork(*argv: str, pass_fds: Sequence[int] = (), **options: Any) -> Worker | asyncio.subprocess.Process:
        if WORKER not in argv:
            return await execute(*argv, pass_fds=pass_fds, **options)
        request = {"words": argv[argv.index(WORKER) :], "environment": options["env"], "numbers": pass_fds}
        socket.send_fds(ours, [json.dumps(request).encode()], pass_fds)
        return Worker(NUMBER.unpack(ours.recv(NUMBER.size))[0])

    asyncio.create_subprocess_exec = fork  # type: ignore[assignment]
    return False


def become_worker(control: socket.socket, server: int) -> None:
    """Fork a worker at each request, and return in it, when the server has adopted it and with its descriptors."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST_SIZE_MAX, 64)
        if not message:
            os._exit(0)
        between = os.fork()
        if between == 0:
            if os.fork():
                os._exit(0)
            break
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)
    while os.getppid() != server:
        time.sleep(0.001)
    control.send(NUMBER.pack(os.getpid()))
    control.close()
    above = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, ABOVE) for descriptor in descriptors]
    os.closerange(3, ABOVE)
    request = json.loads(message)
    for descriptor, number in zip(above, request["numbers"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["words"]


def main(descriptor: int) -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is here stays, and is shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    listener = socket.socket(fileno=descriptor)
    address = Path(listener.getsockname())
    request = fork_at_request(listener)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.sched_setaffinity(0, request.get("processors", os.sched_getaffinity(0)))
    if request.get("own_session"):
        os.setsid()
    sys.argv = request["words"]
    if request.get("programs_too"):
        globals()["_address"] = lambda: address
        subprocess.Popen = fork_or_execute  # type: ignore[assignment,misc]
    if request.get("workers_too") and fork_workers():
        request = {}
    if "script" in request:
        module, _, function = request["script"].partition(":")
        sys.modules["__main__"] = ModuleType("__main__")  # of no package: click calls the program by its argv[0]
        sys.exit(getattr(importlib.import_module(module), function)())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
