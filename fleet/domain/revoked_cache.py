"""Cache of devices and certificates that were revoked, and of rules of distrust: refused whatever the registry says.

It holds what this process has seen among the registry's events, and at its start the revocation journal's. A registry
that answers otherwise has gone back to an older state, by a restore or by a failover that lost commits: that must not
readmit a revoked device, nor renew a distrusted certificate until the rule is written back.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from msgspec.structs import replace

from fleet.domain.changes import Event
from fleet.domain.credential import Credential
from fleet.domain.device import OUT_OF_SERVICE, Device, DeviceState
from fleet.domain.distrust import Distrust, rule_of
from fleet.domain.errors import Refused
from fleet.domain.recent import Recent
from fleet.domain.registry_events import CredentialEnded, DeviceStateChanged, DistrustChanged, decode_event

ENTRIES_MAX = 100_000  # of devices and of certificates each, about 15 MB; the oldest are evicted first


class Held(Protocol):
    """A certificate and its holder."""

    @property
    def device(self) -> Device | None: ...
    @property
    def credential(self) -> Credential: ...


class RevokedCache:
    """Devices that were revoked or retired, certificates that were revoked or superseded, and rules not undone."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._devices: Recent[str, None] = Recent(entries_max)
        self._fingerprints: Recent[bytes, None] = Recent(entries_max)
        self._distrusts: dict[str, Distrust] = {}

    def on_event(self, event: Event) -> None:
        match decode_event(event):
            case DeviceStateChanged(device_id, is_out_of_service=True):
                self._devices.put(device_id, None)
            case CredentialEnded(_, bytes() as fingerprint):
                self._fingerprints.put(fingerprint, None)
            case DistrustChanged(id_, ""):
                self._distrusts.pop(id_, None)
            case DistrustChanged(id_, text):
                with suppress(ValueError):  # of a later release: the registry's own is judged
                    self._distrusts[id_] = rule_of(id_, text)

    def on_events(self, events: Iterable[Event]) -> None:
        for event in events:
            self.on_event(event)

    def on_distrusts(self, rules: Iterable[Distrust]) -> None:
        """`rules` are those in force: events may have been missed."""
        self._distrusts = {rule.id: rule for rule in rules}

    def distrusts(self, known: Sequence[Distrust]) -> tuple[Distrust, ...]:
        """`known`, the registry's rules, with those that it has lost."""
        if not self._distrusts:
            return tuple(known)
        ids = {rule.id for rule in known}
        return (*known, *(rule for id_, rule in self._distrusts.items() if id_ not in ids))

    def refusal_code(self, held: Held) -> str:
        """Code of the refusal, or "" when neither device nor certificate is revoked."""
        if held.device is not None and held.device.id in self._devices:
            return "device-revoked"
        return "certificate-revoked" if held.credential.fingerprint in self._fingerprints else ""

    def has_device(self, device_id: str) -> bool:
        """Whether the device was revoked or retired."""
        return device_id in self._devices

    def must_be_usable(self, held: Held) -> None:
        """Raises: Refused: `device-revoked`, `certificate-revoked`."""
        if code := self.refusal_code(held):
            what = "device" if code == "device-revoked" else "certificate"
            raise Refused(code, f"The {what} was revoked, whatever state the registry has gone back to.")

    def as_revoked(self, device_id: str, device: Device | None) -> Device | None:
        """`device`, the registry's record of `device_id`, revoked if it was.

        Raises: Refused (`device-revoked`): it was, and the registry has no record of it.
        """
        if device_id not in self._devices:
            return device
        if device is None:
            raise Refused("device-revoked", f"Device {device_id} was revoked, and never enrolls again.")
        return device if device.state in OUT_OF_SERVICE else replace(device, state=DeviceState.REVOKED)
