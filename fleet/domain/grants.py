"""Grants, the rights by which a certificate may be requested.

To add one: a frozen subclass of `_FirstGrant` that implements `fleet.domain.issuance_context.Grant`, and in
`fleet.services.credentials` the authenticator that derives it from the client's credentials.
"""

from datetime import timedelta
from typing import ClassVar

from msgspec import Struct

from fleet.domain.approval import ApprovalRequest, RequestState
from fleet.domain.claim import Claim, must_be_open
from fleet.domain.credential import DAY_SECONDS, Credential, Station, Token, day_of, must_be_usable
from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused, TooMany
from fleet.domain.idevid import Anchor, IdevidBinding, IdevidCertificate
from fleet.domain.issuance_context import IssuanceContext, Names, issued_before
from fleet.domain.manifest import ManifestEntry, must_be_the_listed_key
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import (
    BindIdevid,
    CollectRequest,
    EndCredentials,
    EndUnused,
    SpendClaim,
    SpendStation,
    SpendToken,
    Write,
    use_of,
)


class _Declared(Struct, frozen=True):
    """What each kind of grant says about itself."""

    word: ClassVar[str]
    """The first of its text."""
    covers_the_field: ClassVar[bool] = False
    """Whether its certificate, when it is first used, may supersede others of the device that are in use, and is kept
    when an older one is first used.
    """


class _FirstGrant(_Declared, frozen=True):
    """Of a first certificate."""

    replaces = None

    def would_take_over(self, a: IssuanceContext) -> bool:
        """The device is in the field, or its name is held with another key than the one requested."""
        return a.is_in_the_field() or any(c.key_sha256 != a.request.key_sha256 for c in a.credentials)


class TokenGrant(_FirstGrant, frozen=True):
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


class StationGrant(_FirstGrant, frozen=True):
    """Grant by a factory station that authenticated with its own certificate."""

    station: Station
    model: str
    """The model that the label names, "" for none; needed for a new device when the station has several."""
    credential: Credential
    """The station's certificate."""

    path = AdmissionPath.STATION
    word = "station"

    def __str__(self) -> str:
        return f"{self.word} {self.station.name}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        if self.model:
            return self.model
        if len(self.station.models) == 1:
            return self.station.models[0]
        raise Refused(
            "model-not-named",
            "The station provisions several models, and the device is new.",
            "Name the model as the label: /.well-known/est/MODEL/simpleenroll.",
        )

    def must_be_valid(self, a: IssuanceContext) -> None:
        """`identify` has checked the station's certificate."""
        if self.station.quota and self.station.used_on(a.now) >= self.station.quota and issued_before(a) is None:
            raise TooMany(
                "station-quota",
                f"Station {self.station.name} has used its quota of {self.station.quota} certificates a day (UTC).",
                f"Wait for the next day, or allow more: fleet station set {self.station.name} --quota N",
                retry_after_seconds=DAY_SECONDS - int(a.now.timestamp()) % DAY_SECONDS,
            )

    def must_cover_device(self, a: IssuanceContext) -> None:
        if a.model.name not in self.station.models:
            raise Refused("not-your-model", f"Station {self.station.name} may not provision model {a.model.name}.")

    def would_take_over(self, a: IssuanceContext) -> bool:
        """A station may repeat its own run if the certificate was never used."""
        return a.is_in_the_field() or any(c.grant != str(self) for c in a.credentials)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        used = use_of(self.credential)  # a Conflict when it has been revoked since we looked
        # Counted only with a quota: otherwise concurrent requests need not wait for the station's row.
        return (used, SpendStation(self.station.name, day_of(a.now))) if self.station.quota else (used,)


class ClaimGrant(_FirstGrant, frozen=True):
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


class IdevidGrant(_FirstGrant, frozen=True):
    """Grant by the manufacturer's certificate (IDevID, IEEE 802.1AR) that the device presented in the TLS handshake."""

    anchor: Anchor
    certificate: IdevidCertificate
    entry: ManifestEntry | None
    """The manifest entry with its serial, among the anchor's models; None when there is none."""
    bindings: tuple[IdevidBinding, ...]
    """Bindings of this certificate's key, and of the requested device."""
    model: str
    """The model that the label names, or the anchor's only one; "" when there are several."""

    path = AdmissionPath.IDEVID
    word = "idevid"
    covers_the_field = True

    def __str__(self) -> str:
        return f"{self.word} {self.anchor.name} {self.certificate.key_sha256.hex()[:16]}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        if self.entry is not None:
            return self.entry.model
        if not self.model:
            raise Refused(
                "model-not-named",
                "The manufacturer's CA is trusted for several models, and the device is new.",
                "Name the model as the label: /.well-known/est/MODEL/simpleenroll.",
            )
        return self.model

    def must_be_valid(self, a: IssuanceContext) -> None:
        """TLS has verified the chain and its validity; that the anchor is still trusted, the registry has."""

    def must_cover_device(self, a: IssuanceContext) -> None:
        if a.request.wants_key:
            raise Refused("idevid-only-enrolls", "A manufacturer's certificate enrolls the device's own key only.")
        if a.model.name not in self.anchor.models:
            raise Refused("not-your-model", f"The manufacturer's CA {self.anchor.name} is not trusted for this model.")
        if self.entry is None and not a.model.rules.admission.any_idevid:
            raise Refused(
                "not-on-manifest",
                "The serial of the manufacturer's certificate is not on the manifest.",
                "List it: fleet device import FILE",
            )
        # The device does not choose its id: it is the manifest's, or the certificate's serial.
        named = (self.entry.device_id,) if self.entry is not None else self.certificate.serials
        if a.request.device_id not in named:
            raise Refused("not-your-identity", "The manufacturer's certificate is that of another device.")
        for binding in self.bindings:
            if binding.device_id != a.request.device_id:
                raise Refused("idevid-bound", "This manufacturer's certificate has enrolled another device already.")
            if binding.key_sha256 != self.certificate.key_sha256:
                raise Refused("idevid-of-another", "This device has enrolled by another manufacturer's certificate.")

    def would_take_over(self, a: IssuanceContext) -> bool:
        """A device that has enrolled by this very certificate may do so again, after a reset."""
        if self.bindings:
            return False
        return super().would_take_over(a)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        c = self.certificate
        device = a.request.device_id
        return (BindIdevid(IdevidBinding(c.key_sha256, device, c.fingerprint, self.anchor.name, a.now)),)


class ManifestGrant(_FirstGrant, frozen=True):
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


class ApprovalGrant(_FirstGrant, frozen=True):
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


class RenewalGrant(_Declared, frozen=True):
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


_KINDS: tuple[type[_Declared], ...] = (*_FirstGrant.__subclasses__(), RenewalGrant)
COVERING_THE_FIELD = frozenset(kind.word for kind in _KINDS if kind.covers_the_field)
"""Words of grants: what is issued by any other, also by one that nobody knows, is for new devices only."""
