"""The identities of this device as the agent last read them, and when to read them again."""

from collections.abc import Callable

from device_agent.core import TICK_SECONDS
from device_agent.store.identity_store import Identity, IdentityStore


class Identities:
    """`current`, `candidate` and `has_bootstrap` of a store. Other processes change them: they are read again every
    TICK_SECONDS."""

    def __init__(self, store: IdentityStore, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._monotonic = monotonic
        self._refresh_at = 0.0
        self.current: Identity | None = None
        self.candidate: Identity | None = None
        self.has_bootstrap = False

    def refresh(self) -> None:
        """Read both now."""
        self._refresh_at = self._monotonic() + TICK_SECONDS
        self.current, self.candidate = self._store.pair()
        self.has_bootstrap = self._store.has_bootstrap()

    def refresh_if_due(self) -> None:
        if self._monotonic() >= self._refresh_at:
            self.refresh()

    def promote(self) -> None:
        """Make the candidate current. Raises: ClientError, OSError; both are unchanged then."""
        if self.candidate is None:
            return
        with self._store.lock():
            self._store.promote(self.candidate)
        self.refresh()
