"""Established connections of one address block, and those of them that may be ended for a newcomer's.

A protocol says when nothing is in progress on its connection any more, and when something is again. So the one that has
been idle for longest is known when a listener is full: to ask thousands for each newcomer would hold up the event loop.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

from fleet.tls.plain import Established

OnIdle = Callable[[bool], None]


@runtime_checkable
class MayGiveWay(Protocol):
    """A protocol whose connection may be ended for another's while nothing is in progress on it."""

    def watch_idle(self, on_idle: OnIdle) -> None:
        """Called before `connection_made`. `on_idle` is to be called with True whenever nothing is in progress any
        more, and with False when something is again; a connection begins with something in progress.
        """


class Holder:
    """The connections of one address block."""

    __slots__ = ("_idle", "connections")

    def __init__(self) -> None:
        self.connections: dict[Established, None] = {}
        self._idle: tuple[OrderedDict[Established, None], ...] = ()
        """Those without a certificate, and those with one, each idle for longest first; () while none gives way."""

    def __len__(self) -> int:
        return len(self.connections)

    def watch(self, transport: Established, protocol: MayGiveWay) -> None:
        """Know from now on whether `transport`, one of its connections, is idle."""
        self._idle = self._idle or (OrderedDict(), OrderedDict())
        protocol.watch_idle(partial(self._set_idle, transport))

    def _set_idle(self, transport: Established, is_idle: bool) -> None:
        idle = self._idle[transport.peer.certificate_der is not None]
        if not is_idle:
            idle.pop(transport, None)
        elif transport in self.connections:  # not if it has given way
            idle[transport] = None

    def remove(self, transport: Established) -> None:
        del self.connections[transport]
        for idle in self._idle:
            idle.pop(transport, None)

    def longest_idle(self) -> Established | None:
        """The connection that has been idle for longest, without a certificate if there is one; None: all are busy."""
        return next((next(iter(idle)) for idle in self._idle if idle), None)
