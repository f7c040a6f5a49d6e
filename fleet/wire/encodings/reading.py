"""One file in, one Bundle out, whatever the file is."""

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fleet.wire import armor, der
from fleet.wire.certificate_fields import why_unsupported
from fleet.wire.encodings.bundle import (
    CERTIFICATES_MAX,
    OBJECTS_MAX,
    Bundle,
    Request,
    belongs_to,
    chain_order,
    check_password,
)
from fleet.wire.encodings.keys import encrypted_key, old_encrypted_key, plain_key
from fleet.wire.encodings.pem import Block, blocks
from fleet.wire.encodings.pkcs12 import read_pkcs12
from fleet.wire.encodings.recognize import Content, cleaned, recognize
from fleet.wire.errors import Malformed, TooLarge, Unsupported
from fleet.wire.parsing import library_errors
from fleet.wire.pkcs7 import split_signed_data
from fleet.wire.spki import is_for_pss

_CONTENT_BY_LABEL = {
    "CERTIFICATE": Content.CERTIFICATE,
    "X509 CERTIFICATE": Content.CERTIFICATE,
    "TRUSTED CERTIFICATE": Content.CERTIFICATE,
    "CERTIFICATE REQUEST": Content.REQUEST,
    "NEW CERTIFICATE REQUEST": Content.REQUEST,
    "X509 CRL": Content.REVOCATION_LIST,
    "PKCS7": Content.PKCS7,
    "PKCS #7 SIGNED DATA": Content.PKCS7,
    "CMS": Content.PKCS7,
    "PRIVATE KEY": Content.PRIVATE_KEY,
    "RSA PRIVATE KEY": Content.PRIVATE_KEY,
    "EC PRIVATE KEY": Content.PRIVATE_KEY,
    "DSA PRIVATE KEY": Content.PRIVATE_KEY,
    "ENCRYPTED PRIVATE KEY": Content.ENCRYPTED_KEY,
    "PUBLIC KEY": Content.PUBLIC_KEY,
    "TSS2 PRIVATE KEY": Content.TPM_KEY,
}
_OTHERS_BY_LABEL = {
    "PKCS#11 PROVIDER URI": "a key held by a PKCS#11 token (PKCS#11 PROVIDER URI)",
    "OPENSSH PRIVATE KEY": "an OpenSSH private key",
}
_A_TPM_KEY = "a key held by a TPM (TSS2 PRIVATE KEY)"
_A_PSS_KEY = "a private key for RSASSA-PSS alone (id-RSASSA-PSS), which is not read here"
_SILENT_LABELS = frozenset({"EC PARAMETERS"})  # `openssl ecparam -genkey` writes them before the key that repeats them


def read(data: bytes, password: bytes | None = None, *, unsupported_too: bool = False) -> Bundle:
    """Everything in `data`, which may be any of recognize.Content.

    With `unsupported_too`, a certificate that the library cannot load is among `Bundle.unsupported`, not refused.
    Without `password`, an encrypted key in PEM or PKCS#8 is counted and left closed; PKCS#12 that needs one is refused.

    Raises: TooLarge, Malformed (WrongPassword among them), Unsupported (PasswordNeeded among them).
    """
    check_password(password)
    content = recognize(data)
    data = cleaned(data)
    if content is Content.BASE64:
        data = armor.unwrap(data) or b""
        content = recognize(data)
    if content is Content.PKCS12:
        return read_pkcs12(data, password)
    found = _Found(password, unsupported_too)
    if content is Content.PEM:
        for block in blocks(data):
            found.add_block(block)
    else:
        found.add(content, data)
    return found.bundle()


@dataclass(slots=True)
class _Found:
    """What has been read so far. Local to one call of `read`."""

    password: bytes | None = field(repr=False)
    unsupported_too: bool
    certificates: list[x509.Certificate] = field(default_factory=list)
    keys: list[PrivateKeyTypes] = field(default_factory=list, repr=False)
    requests: list[Request] = field(default_factory=list)
    lists: list[x509.CertificateRevocationList] = field(default_factory=list)
    locked_keys: int = 0
    others: list[str] = field(default_factory=list)
    unsupported: list[tuple[bytes, str]] = field(default_factory=list)

    def add_block(self, block: Block) -> None:
        if block.old_encryption:
            if self.password is None:
                self.locked_keys += 1
            else:
                self.keys.append(old_encrypted_key(block.text, self.password))
            return
        content = _CONTENT_BY_LABEL.get(block.label)
        if content is not None:
            is_trusted = block.label == "TRUSTED CERTIFICATE"
            self.add(content, _first_element(block.content) if is_trusted else block.content)
            if is_trusted:
                self.others.append("OpenSSL's trust settings")
        elif block.label not in _SILENT_LABELS:
            self.others.append(_OTHERS_BY_LABEL.get(block.label, f"a PEM block called {block.label}"))

    def add(self, content: Content, data: bytes) -> None:
        match content:
            case Content.CERTIFICATE:
                self._add_certificate(data)
            case Content.REQUEST:
                self._add_request(data)
            case Content.REVOCATION_LIST:
                self._add_list(data)
            case Content.PKCS7:
                self._add_pkcs7(data)
            case Content.PRIVATE_KEY:
                key = plain_key(data)
                if is_for_pss(der.only_element(data, der.SEQUENCE, ber=True)):
                    self.others.append(_A_PSS_KEY)
                else:
                    self.keys.append(key)
            case Content.ENCRYPTED_KEY if self.password is None:
                self.locked_keys += 1
            case Content.ENCRYPTED_KEY:
                self.keys.append(encrypted_key(data, self.password))
            case Content.PUBLIC_KEY:
                self.others.append("a public key")
            case Content.TPM_KEY:
                self.others.append(_A_TPM_KEY)
            case Content.PEM | Content.BASE64 | Content.PKCS12:
                raise Unsupported(f"{content} inside another form is not read.")

    def _add_certificate(self, data: bytes) -> None:
        if len(self.certificates) + len(self.unsupported) >= CERTIFICATES_MAX:
            raise TooLarge(f"The file holds more than {CERTIFICATES_MAX} certificates.")
        try:
            with library_errors("certificate"):
                self.certificates.append(x509.load_der_x509_certificate(data))
        except Malformed:
            if not (why := why_unsupported(data)):
                raise
            if not self.unsupported_too:
                raise Unsupported(f"The certificate is not supported: {why}.") from None
            self.unsupported.append((data, why))

    def _add_request(self, data: bytes) -> None:
        if recognize(data) is not Content.REQUEST:
            raise Malformed("The certificate request can't be read: it is damaged or not what it says it is.")
        self.requests.append(Request(data))

    def _add_pkcs7(self, data: bytes) -> None:
        begin = len(self.certificates)
        certificates, lists = split_signed_data(data, CERTIFICATES_MAX)
        for each in certificates:
            self._add_certificate(each)
        for each in lists:
            self._add_list(each)
        # It holds a SET, sorted by its bytes.
        added = self.certificates[begin:]
        self.certificates[begin:] = [added[index] for index in chain_order(added, None)]

    def _add_list(self, data: bytes) -> None:
        if len(self.lists) >= OBJECTS_MAX:
            raise TooLarge(f"The file holds more than {OBJECTS_MAX} revocation lists.")
        with library_errors("certificate revocation list"):
            self.lists.append(x509.load_der_x509_crl(data))

    def bundle(self) -> Bundle:
        if len(self.keys) > 1:
            raise Unsupported(f"The file holds {len(self.keys)} private keys; put one with its certificates in a file.")
        key = self.keys[0] if self.keys else None
        certificates = tuple(self.certificates)
        if key is not None:
            certificates = tuple(sorted(certificates, key=lambda each: not belongs_to(each, key)))
        return Bundle(
            certificates=certificates,
            private_key=key,
            requests=tuple(self.requests),
            revocation_lists=tuple(self.lists),
            locked_keys=self.locked_keys,
            others=tuple(self.others),
            unsupported=tuple(self.unsupported),
        )


def _first_element(data: bytes) -> bytes:
    return der.read_element(data, 0, len(data)).whole
