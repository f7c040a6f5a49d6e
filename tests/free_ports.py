"""Ports for those who must be told theirs before they listen."""

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1, no two alike, on which nobody listened a moment ago."""
    with ExitStack() as probes:
        listening = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in listening]


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
