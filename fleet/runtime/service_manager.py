"""Notifications to the service manager: ready, alive, stopping, by the protocol of sd_notify(3).

Nothing is sent where $NOTIFY_SOCKET is not set. With `WatchdogSec=` in its unit, systemd kills and restarts a process
whose event loop is blocked: a single worker has no supervisor to notice it.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress

READY = "READY=1"
ALIVE = "WATCHDOG=1"
STOPPING = "STOPPING=1"


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Never blocks; a service manager that is not there, or does not read, is no reason to end."""
    name = environment.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        sender.sendto(state.encode(), f"\0{name[1:]}" if name[0] == "@" else name)


async def keep_alive(environment: Mapping[str, str] = os.environ) -> None:
    """Tell it three times in each period that it allows, until cancelled; return when it does not ask for that."""
    period = environment.get("WATCHDOG_USEC", "")
    if (
        not period.isdecimal()
        or not int(period)
        or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
    ):
        return
    while True:
        notify(ALIVE, environment)
        await asyncio.sleep(int(period) / 3_000_000)
