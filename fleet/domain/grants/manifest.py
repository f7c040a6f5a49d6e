"""By the device's own key, which the manifest has listed: the CSR's signature is the proof of it."""

from dataclasses import dataclass

from fleet.domain.errors import Refused
from fleet.domain.issuance_context import IssuanceContext
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import Write


@dataclass(frozen=True, slots=True)
class ManifestGrant:
    entry: ManifestEntry
    """It lists a key, and that is the one the request is signed with."""

    path = AdmissionPath.MANIFEST
    replaces = None

    def __str__(self) -> str:
        return f"manifest {self.entry.device_id}"

    def model_of_newcomer(self) -> str:
        return self.entry.model

    def must_be_valid(self, a: IssuanceContext) -> None:
        """The manifest has no end. What ends is the device: whoever is to be kept out is revoked."""

    def must_cover_device(self, a: IssuanceContext) -> None:
        if self.entry.device_id != a.request.device_id or self.entry.model != a.model.name:
            raise Refused("not-your-identity", "The manifest lists this key for another device.")
        must_be_the_listed_key(self.entry, a.request.key_sha256)

    def would_take_over(self, a: IssuanceContext) -> bool:
        """The listed key again is the same device again; once it has moved on to another key, that one renews."""
        if any(c.key_sha256 != a.request.key_sha256 for c in a.credentials):
            return True
        return a.is_in_the_field() and not a.credentials

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return ()
