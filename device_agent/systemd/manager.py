"""Notifications to the service manager, by the protocol of sd_notify(3): ready, alive, reloading, stopping, a sentence.

Nothing is sent where $NOTIFY_SOCKET is not set.
"""

import enum
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

STATUS_CHARACTERS_MAX = 200


class ServiceEvent(enum.StrEnum):
    """Events of the log that are states of the service, too."""

    STARTED = "started"
    RELOADING = "reloading"
    RELOADED = "reloaded"
    RELOAD_FAILED = "reload-failed"
    STOPPING = "stopping"


class ServiceManager:
    """The manager that has started this process. `monotonic` is CLOCK_MONOTONIC in seconds."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = (f"\0{name[1:]}" if name[0] == "@" else name) if name[:1] in ("/", "@") else ""
        self._monotonic = monotonic
        self._feed_seconds = _watchdog_seconds(environment) / 3
        self._feed_at = 0.0

    def turn(self, seconds: float) -> float:
        """Feed the watchdog if due, and return how long the loop may wait: `seconds`, or until the next feeding.

        Called by the loop alone: one that is blocked feeds nothing, and is restarted.
        """
        if not self._address or not self._feed_seconds:
            return seconds
        now = self._monotonic()
        if now >= self._feed_at:
            self._notify("WATCHDOG=1")
            self._feed_at = now + self._feed_seconds
        return min(seconds, self._feed_at - now)

    def heard(self, name: str, fields: Mapping[str, object]) -> None:
        """What the manager is told of an event of the log."""
        match name:
            case ServiceEvent.STARTED:
                self._notify("READY=1", "STATUS=Not connected yet.")
            case "connected":
                self._notify(f"STATUS=Connected over {fields.get('protocol')}.")
            case "disconnected" | "connect-failed":
                self._notify(f"STATUS=Not connected: {fields.get('reason')}.")
            case "renewed":
                self._notify(f"STATUS=Renewed until {fields.get('not_after')}.")
            case ServiceEvent.RELOADING:
                self._notify("RELOADING=1", f"MONOTONIC_USEC={round(self._monotonic() * 1e6)}")
            case ServiceEvent.RELOADED | ServiceEvent.RELOAD_FAILED:
                self._notify("READY=1")
            case ServiceEvent.STOPPING:
                self._notify("STOPPING=1", "STATUS=Delivering what is queued.")

    def _notify(self, *states: str) -> None:
        """Never blocks; a manager that is not there, or does not read, is no reason to end."""
        lines = (" ".join(state.split())[:STATUS_CHARACTERS_MAX] for state in states)  # a newline would begin another
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    period = environment.get("WATCHDOG_USEC", "")
    if (
        not period.isascii()
        or not period.isdecimal()
        or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
    ):
        return 0.0
    return int(period[:18]) / 1e6
