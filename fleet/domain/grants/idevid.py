"""Enrollment by a manufacturer's certificate."""

from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused
from fleet.domain.grants.base import FirstGrant
from fleet.domain.idevid import Anchor, IdevidBinding, IdevidCertificate
from fleet.domain.issuance_context import IssuanceContext
from fleet.domain.manifest import ManifestEntry
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import BindIdevid, Write


class IdevidGrant(FirstGrant, frozen=True):
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
