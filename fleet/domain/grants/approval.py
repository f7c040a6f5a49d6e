"""Enrollment by an operator's approval."""

from fleet.domain.approval import ApprovalRequest, RequestState
from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused
from fleet.domain.grants.base import FirstGrant
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import CollectRequest, Write


class ApprovalGrant(FirstGrant, frozen=True):
    """Grant by an operator's approval, of a client without credentials.

    An operator approves a request without looking at who has the name: a takeover needs a token.
    """

    request: ApprovalRequest
    is_new: bool = False
    """Whether the request is not recorded yet."""
    listed: ManifestEntry | None = None
    """The manifest's entry for the requested device."""

    path = AdmissionPath.APPROVAL
    word = "request"

    def __str__(self) -> str:
        return f"{self.word} {self.request.id}"

    @property
    def is_given(self) -> bool:
        """Whether it is approved. Until then everything else is checked, and no permit is given."""
        return self.request.state is not RequestState.PENDING

    def model_for_new_device(self, device_id: DeviceId) -> str:
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

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return (CollectRequest(self.request.id),)
