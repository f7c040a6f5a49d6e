"""Renewal by the device's own certificate."""

from datetime import timedelta

from fleet.domain.credential import Credential, must_be_usable
from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused
from fleet.domain.grants.base import Declared
from fleet.domain.issuance_context import IssuanceContext, Names
from fleet.domain.writes import EndCredentials, EndUnused, Write, use_of


class RenewalGrant(Declared, frozen=True):
    """Grant by the device's own current certificate, presented in the TLS handshake."""

    credential: Credential
    names: Names
    """Names in that certificate."""
    grace: timedelta = timedelta(0)
    """How long after notAfter it can still be renewed."""
    unearned: tuple[Credential, ...] = ()
    """Unused certificates that this use of it ends."""

    path = None
    word = "certificate"
    covers_the_field = True

    @property
    def replaces(self) -> Credential:
        return self.credential

    def __str__(self) -> str:
        return f"{self.word} {self.credential.serial}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        raise Refused("unknown-device", "The device is not in the registry.")

    def must_be_valid(self, a: IssuanceContext) -> None:
        must_be_usable(self.credential, a.now, self.grace)

    def must_cover_device(self, a: IssuanceContext) -> None:
        if self.credential.holder != a.request.device_id:
            raise Refused("not-your-identity", "The certificate presented belongs to another device.")

    def would_take_over(self, a: IssuanceContext) -> bool:
        return False

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        unused = a.issued_unused()
        newest = unused[-1].fingerprint if unused else None
        ended = tuple(c.fingerprint for c in self.unearned)
        return (
            use_of(self.credential),
            *((EndCredentials(ended, a.now),) if ended else ()),
            # One certificate has one successor: a client that renews in a loop does not accumulate them.
            EndUnused(self.credential.kind, self.credential.holder, str(self), newest),
        )
