"""What this process has heard the end of. It stays ended here, whatever the registry should say later.

A registry that answers otherwise has been put back to an older state, by a restore or by a failover that lost commits:
whoever was cut must not come back in by that.
"""

from typing import TypeVar

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.services.admission import Admission

ENDED_MAX = 100_000  # of devices and of certificates each, about 15 MB; the oldest are forgotten first

K = TypeVar("K")
_FOR_GOOD = frozenset({DeviceState.REVOKED, DeviceState.RETIRED})


class RevokedCache:
    """Devices that were revoked or retired, and certificates that were revoked or superseded."""

    def __init__(self, ended_max: int = ENDED_MAX) -> None:
        self._max = ended_max
        self._devices: dict[str, None] = {}
        self._fingerprints: dict[bytes, None] = {}

    def hear(self, event: Event) -> None:
        if event.kind == EventKind.DEVICE_STATE and event.detail in _FOR_GOOD:
            _keep(self._devices, event.subject, self._max)
        elif event.kind == EventKind.CREDENTIAL_ENDED and event.detail:
            _keep(self._fingerprints, bytes.fromhex(event.detail), self._max)

    def holds(self, admission: Admission) -> str:
        """The code of a refusal, or "" when nothing was heard against it."""
        if admission.device.id in self._devices:
            return "device-revoked"
        return "certificate-revoked" if admission.credential.fingerprint in self._fingerprints else ""


def _keep(ended: dict[K, None], key: K, at_most: int) -> None:
    ended[key] = None
    if len(ended) > at_most:
        del ended[next(iter(ended))]
