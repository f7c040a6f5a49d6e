"""Enrollment by a key on the manifest."""

from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused
from fleet.domain.grants.base import FirstGrant
from fleet.domain.issuance_context import IssuanceContext
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import Write


class ManifestGrant(FirstGrant, frozen=True):
    """Grant by a key that the manifest lists: the CSR's signature proves possession."""

    entry: ManifestEntry
    """It lists the key that signed the request."""

    path = AdmissionPath.MANIFEST
    word = "manifest"

    def __str__(self) -> str:
        return f"{self.word} {self.entry.device_id}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        return self.entry.model

    def must_be_valid(self, a: IssuanceContext) -> None:
        """A manifest does not expire; to refuse a device, revoke it."""

    def must_cover_device(self, a: IssuanceContext) -> None:
        if self.entry.device_id != a.request.device_id or self.entry.model != a.model.name:
            raise Refused("not-your-identity", "The manifest lists this key for another device.")
        must_be_the_listed_key(self.entry, a.request.key_sha256)

    def would_take_over(self, a: IssuanceContext) -> bool:
        """The listed key again is the same device; once it has renewed with another key, that one renews."""
        if any(c.key_sha256 != a.request.key_sha256 for c in a.credentials):
            return True
        return a.is_in_the_field() and not a.credentials

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return ()
