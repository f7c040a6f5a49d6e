"""Standard streams of a program of another user: a terminal of its own where ours is one, else pipes; what it writes is
passed on.

On our terminal, its control characters are escaped. Our terminal's keys are passed on as they are typed, unechoed: echo
and lines are its terminal's, and so a prompt for a password works. Interrupt and quit remain ours; suspension is off.
"""

import codecs
import contextlib
import fcntl
import os
import select
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

from device_agent.signals import Waker
from fleet.config.streams import STDERR, STDIN, STDOUT, printable

CHUNK_SIZE = 4096  # bytes: what a pipe takes at once, when it takes any
LEFT_SIZE_MAX = 65536  # bytes of a stream that are passed on after the program's end, if another holds it open

Write = Callable[[bytes], None]


class Relay:
    """`stdin`, `stdout` and `stderr` are for the program's Popen; call `started` and `run` then."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._master = self._slave = -1
        self._outputs: dict[int, Write] = {}
        self._source = self._target = -1
        """Of input: from where, and to where."""
        self._input: IO[bytes] | None = None
        self.stdin: int = STDIN
        self.stdout: int = subprocess.PIPE
        self.stderr: int = subprocess.PIPE

    @classmethod
    @contextlib.contextmanager
    def of_standard_streams(cls) -> Iterator[Self]:
        """Our terminal is as before when the block ends. Raises: OSError."""
        relay = cls()
        with relay._stack:
            relay._prepare()
            yield relay

    def _prepare(self) -> None:
        terminals = [number for number in (STDOUT, STDERR, STDIN) if os.isatty(number)]
        if terminals:
            self._open_terminal(terminals[0])
        if STDIN in terminals:
            self.stdin = self._slave
            if _is_in_foreground():
                self._stack.enter_context(_unechoed())
                self._source, self._target = STDIN, self._master
        elif fcntl.fcntl(STDIN, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            self.stdin = subprocess.PIPE
        if STDOUT in terminals:
            self.stdout = self._slave
        if STDERR in terminals:
            self.stderr = self._slave
        elif STDOUT not in terminals and os.path.samestat(os.fstat(STDOUT), os.fstat(STDERR)):
            self.stderr = subprocess.STDOUT  # in their order

    def _open_terminal(self, like: int) -> None:
        self._master, self._slave = os.openpty()
        self._stack.callback(os.close, self._master)
        self._stack.callback(self._close_slave)
        attributes = termios.tcgetattr(like)
        attributes[1] &= ~termios.OPOST  # our terminal does that
        termios.tcsetattr(self._slave, termios.TCSANOW, attributes)
        termios.tcsetwinsize(self._slave, termios.tcgetwinsize(like))
        write = _writer(sys.stderr if like == STDERR else sys.stdout) if like != STDIN else _write_stdin
        self._outputs[self._master] = _escaping(write)

    def _close_slave(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    def take_terminal(self) -> None:
        """In the child, which leads a session: the new terminal, if any, is that session's."""
        if self._slave >= 0:
            fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)

    def started(self, process: "subprocess.Popen[bytes]") -> None:
        """The child has its ends."""
        self._close_slave()
        for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if pipe is not None:
                self._stack.callback(pipe.close)
                self._outputs[pipe.fileno()] = _writer(stream)
        if process.stdin is not None:
            self._input = process.stdin
            self._stack.callback(process.stdin.close)
            self._source, self._target = STDIN, process.stdin.fileno()
        for number in self._outputs:
            os.set_blocking(number, False)

    def run(self, exited: int, waker: Waker, forward: Callable[[int], None]) -> None:
        """Pass on until `exited` is readable; signals that `waker` has received go to `forward`."""
        has_room = False
        while True:
            poll = select.poll()
            for number in (exited, waker.descriptor, *self._outputs):
                poll.register(number, select.POLLIN)
            if self._source >= 0 and has_room:
                poll.register(self._source, select.POLLIN)
            elif self._source >= 0:
                # One of Linux's terminals may be written and read by its master.
                poll.register(self._target, select.POLLOUT | select.POLLIN * (self._target in self._outputs))
            ready = dict(poll.poll())
            if waker.descriptor in ready:
                waker.clear()
            for number in sorted(waker.signals()):
                forward(number)
            if self._source >= 0 and has_room and self._source in ready:
                self._pass_input()
                has_room = False
            elif ready.get(self._target, 0) & ~select.POLLIN:
                has_room = True
            for number in [each for each in self._outputs if ready.get(each, 0) & ~select.POLLOUT]:
                self._pass_output(number)
            if exited in ready:
                break
        for number in list(self._outputs):
            left = LEFT_SIZE_MAX
            while left > 0 and (size := self._pass_output(number)):
                left -= size

    def _pass_output(self, number: int) -> int:
        """The number of bytes; 0 if there are none now. At its end it is passed on no more."""
        try:
            data = os.read(number, CHUNK_SIZE)
        except BlockingIOError:
            return 0
        except OSError:  # of a terminal: nobody has it open
            data = b""
        self._outputs[number](data)
        if not data:
            del self._outputs[number]
        return len(data)

    def _pass_input(self) -> None:
        try:
            data = os.read(self._source, CHUNK_SIZE)
            if data:
                os.write(self._target, data)
                return
        except BlockingIOError:  # a line too long for a terminal
            return
        except OSError:
            pass
        self._source = -1
        if self._input is not None:
            self._input.close()


def _is_in_foreground() -> bool:
    """Whether keys of our terminal are for us: a shell's background job that reads them is stopped."""
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:  # it is not the terminal of our session
        return True


@contextlib.contextmanager
def _unechoed() -> Iterator[None]:
    before = termios.tcgetattr(STDIN)
    attributes = termios.tcgetattr(STDIN)
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    attributes[6] = [*attributes[6]]
    attributes[6][termios.VMIN], attributes[6][termios.VTIME], attributes[6][termios.VSUSP] = 1, 0, b"\0"
    termios.tcsetattr(STDIN, termios.TCSANOW, attributes)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSANOW, before)


def _write_stdin(data: bytes) -> None:
    os.write(STDIN, data)


def _writer(stream: Any) -> Write:
    def write(data: bytes) -> None:
        stream.buffer.write(data)
        stream.buffer.flush()

    return write


def _escaping(write: Write) -> Write:
    """To a terminal: the bytes of a program that is not trusted with it. b"" is its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write_escaped(data: bytes) -> None:
        write(printable(decoder.decode(data, final=not data), keep="\n\r\t\b\a").encode())

    return write_escaped
