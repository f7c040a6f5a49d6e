"""Connections on which nothing is ever sent, from several addresses: an attack on a listener's half-open connections.

What the server closes is opened again, a tenth of a second later: on shared cores, a loop that does nothing else would
measure what the attacker's own system calls take.
"""

import contextlib
import resource
import select
import socket
import threading
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from hw_bench.drivers.command_loop import Command, Handler, serve

WAIT_SECONDS = 0.1


class IdleConnections:
    """`count` connections to one address, held by a thread."""

    def __init__(self, config: Command) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._count: int = config["count"]
        self._sources = cycle(config["sources"])
        self._stopped = threading.Event()
        self._filled = threading.Event()
        self._thread = threading.Thread()
        self._opened = 0

    def begin(self, host: str, port: int) -> dict[str, Any]:
        """Open them all; returns when `count` have been opened."""
        self._stopped.clear()
        self._filled.clear()
        self._opened = 0
        self._thread = threading.Thread(target=self._hold, args=((host, port),), daemon=True)
        self._thread.start()
        self._filled.wait(30.0)
        return {"opened": self._opened}

    def end(self) -> dict[str, Any]:
        """Close them: {"opened"}, how many there were in all."""
        self._stopped.set()
        self._thread.join()
        return {"opened": self._opened}

    def _hold(self, address: tuple[str, int]) -> None:
        held: dict[int, socket.socket] = {}
        poll = select.epoll()
        while not self._stopped.is_set():
            while len(held) < self._count and not self._stopped.is_set():
                connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                connection.setblocking(False)
                connection.bind((next(self._sources), 0))
                with contextlib.suppress(BlockingIOError):
                    connection.connect(address)
                held[connection.fileno()] = connection
                poll.register(connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
                self._opened += 1
            self._filled.set()
            self._stopped.wait(WAIT_SECONDS)
            for handle, _ in poll.poll(0):
                held.pop(handle).close()
        for connection in held.values():
            connection.close()
        poll.close()


def prepare(config: Command) -> Mapping[str, Handler]:
    connections = IdleConnections(config)
    return {
        "begin": lambda command: connections.begin(command["host"], command["port"]),
        "end": lambda command: connections.end(),
    }


if __name__ == "__main__":
    serve(prepare)
