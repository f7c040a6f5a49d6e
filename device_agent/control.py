"""Control protocol of a running agent on the Unix socket in its home. One JSON object a line, both ways.

    {"do": "send", "topic": T, "payload": BASE64, "qos": 0 or 1, "wait": BOOL}
                               -> {"ok": true} once accepted; with wait, once acknowledged
    {"do": "status"}           -> {"ok": true, ...}
    {"do": "wait-connected"}   -> {"ok": true} once connected
    {"do": "renew"}            -> {"ok": true, ...} once renewed and proven
    {"do": "prove"}            -> the same, for a candidate that is already stored

Failures are answered with {"ok": false, "message": ..., "advice": ...}. The socket is 0600, like the key.
"""

import contextlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_agent.errors import AgentError, NotRunning, SendRefused
from device_agent.outbox import PAYLOAD_SIZE_MAX
from fleet.est_client.errors import ClientError

SOCKET_NAME = "agent.sock"
LINE_SIZE_MAX = PAYLOAD_SIZE_MAX * 4 // 3 + 8192  # bytes: the largest payload in base64, its topic, and slack
_SUN_PATH_MAX = 100  # bytes: the kernel accepts 107
_READ_SIZE = 65536
_STATUS_SECONDS_MAX = 5.0

Answer = dict[str, Any]


def ask(home: Path, request: dict[str, Any], timeout_seconds: float) -> Answer:
    """Send a request to the running agent and return its answer, which has "ok": true.

    Raises: NotRunning if there is no agent, or it ended before it answered; AgentError with the agent's message;
    TimeoutError.
    """
    deadline = time.monotonic() + timeout_seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            with socket_address(home) as address:
                connection.connect(address)
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n") and len(line) <= LINE_SIZE_MAX:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                data = connection.recv(_READ_SIZE)
                if not data:
                    raise ConnectionResetError("the agent ended")
                line += data
        except TimeoutError:
            raise
        except OSError as error:
            raise NotRunning(
                f"No agent answers in {home}.", f"Start it: device-agent --home {shlex.quote(str(home))} run."
            ) from error
    answer: Answer = json.loads(line)
    if not answer.get("ok"):
        raise AgentError(str(answer.get("message", "The agent refused.")), str(answer.get("advice", "")))
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
            reason = "it has not acknowledged the message"
        else:
            reason = str(status.get("last_error") or "the agent is not connected").rstrip(".")
        raise SendRefused(
            f"The server did not answer in time: {reason}. The message stays queued until the server accepts it.",
            f"Do not send it again. See: device-agent --home {shlex.quote(str(home))} status.",
        ) from None


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
