"""Grant by a claim certificate, which a batch of devices shares."""

from msgspec import Struct

from fleet.domain.claim import Claim, must_be_open
from fleet.domain.credential import Credential
from fleet.domain.errors import Refused
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import MarkUsed, SpendClaim, Write


class ClaimGrant(Struct, frozen=True):
    claim: Claim
    credential: Credential
    """The claim's certificate."""
    listed: ManifestEntry | None = None
    """The manifest's entry for the requested device."""

    path = AdmissionPath.CLAIM
    replaces = None

    def __str__(self) -> str:
        return f"claim {self.claim.name}"

    def model_for_new_device(self) -> str:
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

    def would_take_over(self, a: IssuanceContext) -> bool:
        """Every device of the batch has this certificate: only the requested key distinguishes them."""
        return a.is_in_the_field() or any(c.key_sha256 != a.request.key_sha256 for c in a.credentials)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return (SpendClaim(self.claim.name), MarkUsed(self.credential.fingerprint))
