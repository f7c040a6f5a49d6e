"""A program's end of the control socket in the agent's home. README.md describes the protocol."""

import contextlib
import json
import os
import shlex
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from device_agent.errors import BY_CODE, AgentError, Busy, Denied, NotRunning, SendRefused
from device_agent.spool.outbox import PAYLOAD_SIZE_MAX
from fleet.est_client.errors import ClientError

SOCKET_NAME = "agent.sock"
LINE_SIZE_MAX = PAYLOAD_SIZE_MAX * 4 // 3 + 8192  # bytes: the largest payload in base64, its topic, and slack
HEARD_SIZE_MAX = 2 * LINE_SIZE_MAX  # of the agent's lines: escapes and properties of a message come on top
_SUN_PATH_MAX = 100  # bytes: the kernel accepts 107
_READ_SIZE = 65536
_STATUS_SECONDS_MAX = 5.0
_FULL_SECONDS = 0.05  # between two attempts to connect
_GROUP_ADVICE = "Its owner may; [apps] of agent.toml names a group of others that may."

Answer = dict[str, Any]


class Conversation:
    """One connection to the running agent. Use it in a `with` block.

    Raises: NotRunning if there is no agent; Busy if it accepts no more programs.
    """

    def __init__(self, home: Path, timeout_seconds: float = _STATUS_SECONDS_MAX) -> None:
        self._home = home
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_seconds)
        try:
            with self._not_running_for_errors(), socket_address(home) as address:
                self._connect(address, time.monotonic() + timeout_seconds)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _connect(self, address: str, deadline: float) -> None:
        """The kernel refuses a connection at once while the queue of those not accepted yet is full."""
        while True:
            try:
                return self._socket.connect(address)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"The agent in {self._home} is running, but its socket is full: programs hold all connections.",
                        "Look for programs that open many, and try again.",
                    ) from None
                time.sleep(_FULL_SECONDS)

    @property
    def peer_pid(self) -> int:
        """The process at the other end, as the kernel knows it. Raises: NotRunning if it is none that we see."""
        size = struct.calcsize("3i")
        pid = int(struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0])
        if pid <= 0:
            raise NotRunning(f"What answers in {self._home} is no process of this system.")
        return pid

    def say(self, request: dict[str, Any]) -> None:
        """Send a request. Raises: NotRunning; TimeoutError."""
        with self._not_running_for_errors():
            self._socket.sendall(json.dumps(request).encode() + b"\n")

    def hear(self, timeout_seconds: float | None = None) -> Answer:
        """The next line; None waits without limit. Raises: NotRunning; TimeoutError."""
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else None
        while not self._lines:
            with self._not_running_for_errors():
                self._socket.settimeout(max(0.001, deadline - time.monotonic()) if deadline is not None else None)
                data = self._socket.recv(_READ_SIZE)
                if not data or len(self._rest) > HEARD_SIZE_MAX:
                    raise ConnectionResetError("the agent ended")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)
        try:
            answer = json.loads(self._lines.popleft())
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise NotRunning(f"What answers in {self._home} is no agent.")
        return answer

    @contextlib.contextmanager
    def _not_running_for_errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise
        except OSError as error:
            home = shlex.quote(str(self._home))
            if isinstance(error, PermissionError):
                raise Denied(f"This user may not open the agent's socket in {self._home}.", _GROUP_ADVICE) from error
            raise NotRunning(
                f"No agent answers in {self._home}.", f"Start it: device-agent --home {home} run."
            ) from error


def ask(home: Path, request: dict[str, Any], timeout_seconds: float) -> Answer:
    """Send a request to the running agent and return its answer, which has "ok": true.

    Raises: NotRunning if there is no agent, or it ended before it answered; AgentError with the agent's message;
    TimeoutError.
    """
    deadline = time.monotonic() + timeout_seconds
    with Conversation(home, timeout_seconds) as conversation:
        conversation.say(request)
        return checked(conversation.hear(deadline - time.monotonic()))


def checked(answer: Answer) -> Answer:
    """An answer that has "ok": true. Raises: AgentError with the agent's message."""
    if not answer.get("ok"):
        kind = BY_CODE.get(str(answer.get("code")), AgentError)
        raise kind(str(answer.get("message", "The agent refused.")), str(answer.get("advice", "")))
    return answer


def send(home: Path, request: dict[str, Any], timeout_seconds: float) -> None:
    """Send the request "send" to the running agent.

    Raises: as `ask`; SendRefused instead of TimeoutError if the agent has the message queued: with the reason.
    """
    try:
        ask(home, request, timeout_seconds)
    except TimeoutError:
        try:
            status = ask(home, {"do": "status"}, _STATUS_SECONDS_MAX)
        except (ClientError, TimeoutError):
            status = {}
        if not status.get("waiting"):
            raise
        if status.get("connected"):
            reason = "the server has not acknowledged it"
        else:
            reason = str(status.get("last_error") or "the agent is not connected")
        raise SendRefused(*undelivered(reason, home)) from None


def undelivered(reason: str, home: Path) -> tuple[str, str]:
    """Message and advice for who waits for the delivery of a message that is still queued."""
    return (
        f"The message is not delivered yet: {reason.rstrip('.')}. It stays queued until the server accepts it.",
        f"Do not send it again. See: device-agent --home {shlex.quote(str(home))} status.",
    )


@contextlib.contextmanager
def socket_address(home: Path) -> Iterator[str]:
    """The address of the home's socket, while the block runs."""
    path = str(home / SOCKET_NAME)
    if len(os.fsencode(path)) <= _SUN_PATH_MAX:
        yield path
        return
    # The kernel limits the length of the path; a descriptor gives any directory a short one.
    descriptor = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
