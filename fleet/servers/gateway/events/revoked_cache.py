"""Cache of devices and certificates that this process has seen revoked; they stay refused whatever the registry says.

A registry that answers otherwise has gone back to an older state, by a restore or by a failover that lost commits:
that must not readmit a revoked device.
"""

from typing import TypeVar

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import OUT_OF_SERVICE
from fleet.services.admission import Admission

ENTRIES_MAX = 100_000  # of devices and of certificates each, about 15 MB; the oldest are evicted first

K = TypeVar("K")


class RevokedCache:
    """Devices that were revoked or retired, and certificates that were revoked or superseded."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._max = entries_max
        self._devices: dict[str, None] = {}
        self._fingerprints: dict[bytes, None] = {}

    def on_event(self, event: Event) -> None:
        if event.kind == EventKind.DEVICE_STATE and event.detail in OUT_OF_SERVICE:
            _add(self._devices, event.subject, self._max)
        elif event.kind == EventKind.CREDENTIAL_ENDED and event.detail:
            _add(self._fingerprints, bytes.fromhex(event.detail), self._max)

    def refusal_code(self, admission: Admission) -> str:
        """Code of the refusal, or "" when neither device nor certificate is revoked."""
        if admission.device.id in self._devices:
            return "device-revoked"
        return "certificate-revoked" if admission.credential.fingerprint in self._fingerprints else ""


def _add(entries: dict[K, None], key: K, entries_max: int) -> None:
    entries[key] = None
    if len(entries) > entries_max:
        del entries[next(iter(entries))]
