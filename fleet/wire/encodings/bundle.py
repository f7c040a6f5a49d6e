"""What certificate files hold, whatever they are called, as one frozen value; and the forms it can be written in."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire import armor
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.errors import Malformed, Unsupported, WireError
from fleet.wire.parsing import library_errors
from fleet.wire.spki import is_for_pss, spki_of

INPUT_SIZE_MAX = 16 * 1024 * 1024  # a CRL of 100,000 entries is 3.9 MB, 5.3 MB as PEM
CERTIFICATES_MAX = 1000  # the world's root programs together hold some 300
OBJECTS_MAX = 1100  # PEM blocks of every kind
PKCS12_SIZE_MAX = 1024 * 1024
KEY_SIZE_MAX = 32 * 1024  # an RSA-16384 key takes 9.3 KB


class PasswordNeeded(Unsupported):
    """It is encrypted, or is to be, and no password was given."""


class WrongPassword(Malformed):
    """The password does not open it. A damaged file looks the same."""


class WouldLose(Unsupported):
    """The form can't hold everything. `lost` names each thing in words."""

    def __init__(self, form: "Form", lost: tuple[str, ...]) -> None:
        super().__init__(f"Writing {FORM_TITLES[form]} would lose {_listed(lost)}.")
        self.form = form
        self.lost = lost


def _listed(items: tuple[str, ...]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def check_password(password: bytes | None) -> None:
    """Refuse what the library can't take: it passes passwords on as C strings. Raises: Unsupported."""
    if password is not None and b"\0" in password:
        raise Unsupported("A password can't hold a NUL character.")


class Form(enum.StrEnum):
    PEM = "pem"
    DER = "der"
    P7B = "p7b"
    P7B_PEM = "p7b-pem"
    P12 = "p12"
    P12_LEGACY = "p12-legacy"
    """For Windows before 10 (1709) and Java before 8u301, which know no AES here."""
    KEY = "key"


FORM_TITLES = {
    Form.PEM: "PEM",
    Form.DER: "DER",
    Form.P7B: "PKCS#7",
    Form.P7B_PEM: "PKCS#7",
    Form.P12: "PKCS#12",
    Form.P12_LEGACY: "PKCS#12",
    Form.KEY: "a key file",
}

FORM_BY_SUFFIX = {
    ".pem": Form.PEM,
    ".cer": Form.DER,
    ".crt": Form.DER,
    ".der": Form.DER,
    ".p7b": Form.P7B,
    ".p7c": Form.P7B,
    ".p12": Form.P12,
    ".pfx": Form.P12,
    ".key": Form.KEY,
}


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate request, undecoded: what the enrollment server takes of it is `fleet.wire.csr`'s to say."""

    der: bytes

    def public_bytes(self, encoding: Encoding) -> bytes:
        """In PEM or DER, as the library's objects have it."""
        if encoding is Encoding.DER:
            return self.der
        return armor.pem("CERTIFICATE REQUEST", self.der).encode("ascii")


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything found in one file. When the key's own certificate is there, it comes first."""

    certificates: tuple[x509.Certificate, ...] = ()
    private_key: PrivateKeyTypes | None = field(default=None, repr=False)
    requests: tuple[Request, ...] = ()
    revocation_lists: tuple[x509.CertificateRevocationList, ...] = ()
    friendly_names: tuple[str | None, ...] = ()
    """PKCS#12's name for each certificate, in their order; () when none has one."""
    locked_keys: int = 0
    """Encrypted private keys left closed because no password was given."""
    others: tuple[str, ...] = ()
    """What else is there, in words: seen, but not kept."""
    unsupported: tuple[tuple[bytes, str], ...] = ()
    """DER of certificates that the library cannot load, each with the reason; only where they were asked for."""

    def friendly_name(self, index: int) -> str | None:
        return self.friendly_names[index] if index < len(self.friendly_names) else None


def belongs_to(certificate: x509.Certificate, private_key: PrivateKeyTypes) -> bool:
    """Whether `certificate` is for `private_key`. False where its key can't be read.

    An RSA key and a certificate for RSASSA-PSS alone are no pair, though their numbers be equal: TLS engines refuse it.
    """
    try:
        with library_errors("public key"):
            own = certificate_fields(certificate.public_bytes(Encoding.DER)).spki
            return not is_for_pss(own) and spki_of(certificate.public_key()) == spki_of(private_key.public_key())
    except WireError:
        return False


def chain_order(certificates: Iterable[x509.Certificate], private_key: PrivateKeyTypes | None) -> list[int]:
    """Indices that put a set in order: the key's certificate, or the only one that issued none of the others, then
    its issuer, and so on; then the rest as they came.
    """
    pool = list(certificates)
    names = [_subject_and_issuer(each) for each in pool]
    order = [i for i, each in enumerate(pool) if private_key is not None and belongs_to(each, private_key)][:1]
    if not order:
        issuers = {issuer for subject, issuer in names if issuer != subject}
        leaves = [i for i, (subject, _) in enumerate(names) if subject not in issuers]
        order = leaves if len(leaves) == 1 else []
    by_subject = {subject: i for i, (subject, _) in reversed(list(enumerate(names)))}
    seen = set(order)
    while order and (following := by_subject.get(names[order[-1]][1])) is not None and following not in seen:
        order.append(following)
        seen.add(following)
    return order + [i for i in range(len(pool)) if i not in seen]


def _subject_and_issuer(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """Both as DER; empty where the certificate's own names can't be read."""
    try:
        with library_errors("certificate"):
            return certificate.subject.public_bytes(), certificate.issuer.public_bytes()
    except WireError:
        return b"", b""
