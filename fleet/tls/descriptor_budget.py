"""File descriptors that the connections of a process may take, shared by its listeners."""

from collections.abc import Callable
from typing import Protocol


class Sharing(Protocol):
    """A listener that shares the descriptors."""

    @property
    def descriptors(self) -> int:
        """Those that its connections take."""

    @property
    def may_give(self) -> int:
        """Those of connections that may be ended for a newcomer's."""

    def give_way(self, newcomer: str) -> bool:
        """End a connection for one from the address block `newcomer`; False when none may be ended for it."""


class DescriptorBudget:
    """A number of descriptors. When all are taken, the listener that has most of those it may end, ends one."""

    def __init__(self, total: int, on_full: Callable[[], None]) -> None:
        """`on_full` is called whenever room has to be made."""
        self.total = total
        self._on_full = on_full
        self._listeners: list[Sharing] = []

    def join(self, listener: Sharing) -> None:
        self._listeners.append(listener)

    @property
    def taken(self) -> int:
        taken = 0  # a plain loop: each connection asks
        for listener in self._listeners:
            taken += listener.descriptors
        return taken

    def make_room(self, newcomer: str, needed: int) -> bool:
        """Have `needed` descriptors for a connection from the address block `newcomer`; False when it is refused."""
        while self.taken + needed > self.total:
            self._on_full()
            # No other is asked when it refuses: the newcomer's own block holds most of it.
            if not max(self._listeners, key=lambda listener: listener.may_give).give_way(newcomer):
                return False
        return True
