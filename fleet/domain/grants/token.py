"""Enrollment by a token."""

from fleet.domain.credential import Token
from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused
from fleet.domain.grants.base import FirstGrant
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import SpendToken, Write


class TokenGrant(FirstGrant, frozen=True):
    """Grant by a token whose secret has been verified."""

    token: Token
    username: str
    """The HTTP Basic user name sent with it."""
    listed: ManifestEntry | None = None
    """The manifest's entry for the requested device."""

    path = AdmissionPath.TOKEN
    word = "token"
    covers_the_field = True  # one for this very device, unless its maker may not change devices there

    def __str__(self) -> str:
        return f"{self.word} {self.token.id}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        if self.token.model is None:
            self._must_be_of(device_id)
            raise Refused("unknown-device", "The device is not in the registry.", "Add it: fleet device add.")
        return self.token.model

    def must_be_valid(self, a: IssuanceContext) -> None:
        if self.token.revoked_at is not None:
            raise Refused("token-revoked", "The token has been revoked.", "Ask for a new one.")
        if a.now >= self.token.expires_at:
            raise Refused("token-expired", "The token has expired.", "Ask for a new one.")
        if self.token.uses >= self.token.uses_max and issued_before(a) is None:
            raise Refused("token-used-up", "The token has been used up.", "Ask for a new one.")

    def must_cover_device(self, a: IssuanceContext) -> None:
        self._must_be_of(a.request.device_id)
        if self.token.model is not None and self.token.model != a.model.name:
            raise Refused("not-your-model", "The token was made for another model.")
        if self.token.device_id is None:
            must_be_the_listed_key(self.listed, a.request.key_sha256)

    def _must_be_of(self, name: DeviceId) -> None:
        """Raises: Refused (`not-your-identity`), whether or not a device of this name is registered."""
        if self.username and self.username != name:
            raise Refused("not-your-identity", "The user name and the request's common name differ.")
        if self.token.device_id is not None and self.token.device_id != name:
            raise Refused("not-your-identity", "The token was made for another device.")

    def would_take_over(self, a: IssuanceContext) -> bool:
        """A token for this very device readmits a reflashed board, also in the field if its maker might change devices
        there. The same key again is a retry after a lost response.
        """
        if self.token.device_id is not None:
            return not self.token.takes_over and a.is_in_the_field()
        return super().would_take_over(a)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        return (SpendToken(self.token.id),)
