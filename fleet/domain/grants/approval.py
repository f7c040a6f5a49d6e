"""Grant by an operator's approval, of a client without credentials."""

from msgspec import Struct

from fleet.domain.approval import ApprovalRequest, RequestState
from fleet.domain.errors import Refused
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import CollectRequest, Write


class ApprovalGrant(Struct, frozen=True):
    request: ApprovalRequest
    is_new: bool = False
    """Whether the request is not recorded yet."""
    listed: ManifestEntry | None = None
    """The manifest's entry for the requested device."""

    path = AdmissionPath.APPROVAL
    replaces = None

    def __str__(self) -> str:
        return f"request {self.request.id}"

    @property
    def is_given(self) -> bool:
        """Whether it is approved. Until then everything else is checked, and no permit is given."""
        return self.request.state is not RequestState.PENDING

    def model_for_new_device(self) -> str:
        return self.request.model

    def must_be_valid(self, a: IssuanceContext) -> None:
        if self.request.state is RequestState.DENIED:
            raise Refused("request-denied", "An operator has denied this request.")
        if self.request.state is RequestState.ISSUED and issued_before(a) is None:
            advice = "Renew it with simplereenroll, or ask for a token to enroll a new key."
            raise Refused("request-used-up", "The certificate of this request has been issued.", advice)

    def must_cover_device(self, a: IssuanceContext) -> None:
        if (self.request.device_id, self.request.key_sha256) != (a.request.device_id, a.request.key_sha256):
            raise Refused("not-your-identity", "The request is for another device or another key.")
        if self.request.model != a.model.name:
            raise Refused("not-your-model", "The request was for another model.")
        must_be_the_listed_key(self.listed, a.request.key_sha256)

    def would_take_over(self, a: IssuanceContext) -> bool:
        """An operator approves a request without looking at who has the name: a takeover needs a token."""
        return a.is_in_the_field() or any(c.key_sha256 != a.request.key_sha256 for c in a.credentials)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return (CollectRequest(self.request.id),)
