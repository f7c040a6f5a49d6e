"""Enrollment by a claim certificate."""

from fleet.domain.claim import Claim, must_be_open
from fleet.domain.credential import Credential
from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused
from fleet.domain.grants.base import FirstGrant
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import SpendClaim, Write, use_of


class ClaimGrant(FirstGrant, frozen=True):
    """Grant by a claim certificate, which a batch of devices shares.

    Every device of the batch has this certificate: only the requested key distinguishes them.
    """

    claim: Claim
    credential: Credential
    """The claim's certificate."""
    listed: ManifestEntry | None = None
    """The manifest's entry for the requested device."""

    path = AdmissionPath.CLAIM
    word = "claim"

    def __str__(self) -> str:
        return f"{self.word} {self.claim.name}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        return self.claim.model

    def must_be_valid(self, a: IssuanceContext) -> None:
        claim = self.claim
        must_be_open(claim)
        if a.now >= claim.expires_at:
            raise Refused("claim-expired", f"The claim {claim.name} has expired.")
        if claim.uses >= claim.quota and issued_before(a) is None:
            raise Refused("claim-used-up", f"The claim {claim.name} has been used up.")

    def must_cover_device(self, a: IssuanceContext) -> None:
        if a.model.name != self.claim.model:
            raise Refused("not-your-model", f"The claim {self.claim.name} is for another model.")
        must_be_the_listed_key(self.listed, a.request.key_sha256)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return (SpendClaim(self.claim.name), use_of(self.credential))
