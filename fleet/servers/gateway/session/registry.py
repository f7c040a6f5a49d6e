"""Registry of a gateway's open sessions, by claimed device and by certificate fingerprint."""

from collections.abc import Iterator
from typing import Generic, TypeVar

S = TypeVar("S")
K = TypeVar("K")


class SessionRegistry(Generic[S]):
    """A session is registered under the device that it claims before it is admitted: an event about that device
    then always finds the session, whichever of event and admission comes first.
    """

    def __init__(self) -> None:
        self._all: set[S] = set()
        self._by_device: dict[str, tuple[S, ...]] = {}  # mostly of one
        self._by_fingerprint: dict[bytes, tuple[S, ...]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[S]:
        return iter(tuple(self._all))

    def add(self, session: S, fingerprint: bytes | None) -> None:
        self._all.add(session)
        if fingerprint is not None:
            _add(self._by_fingerprint, fingerprint, session)

    def claim(self, session: S, device_id: str, before: str = "") -> None:
        """`session` claims to be of `device_id`, and no longer of `before`; with "" it does not say yet."""
        if before:
            _remove(self._by_device, before, session)
        if device_id:
            _add(self._by_device, device_id, session)

    def remove(self, session: S, fingerprint: bytes | None, device_id: str) -> None:
        """Remove `session` from every index; does nothing when it is not registered."""
        self._all.discard(session)
        if fingerprint is not None:
            _remove(self._by_fingerprint, fingerprint, session)
        _remove(self._by_device, device_id, session)

    def of_device(self, device_id: str) -> tuple[S, ...]:
        return self._by_device.get(device_id, ())

    def of_fingerprint(self, fingerprint: bytes) -> tuple[S, ...]:
        return self._by_fingerprint.get(fingerprint, ())


def _add(index: dict[K, tuple[S, ...]], key: K, session: S) -> None:
    found = index.get(key, ())
    if session not in found:
        index[key] = (*found, session)


def _remove(index: dict[K, tuple[S, ...]], key: K, session: S) -> None:
    if left := tuple(one for one in index.get(key, ()) if one is not session):
        index[key] = left
    else:
        index.pop(key, None)
