"""A key that is made on this machine, the certificate that it is enrolled for, and the files they are written to.

All that leaves the machine is a certificate request.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import generate_key, write_key
from fleet.cli.errors import CliError
from fleet.cli.output import Row
from fleet.client.client import Client, bad_answer
from fleet.config.durable_files import write_file
from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.ca_role import CaRole
from fleet.domain.errors import Conflict
from fleet.wire.csr import build_csr
from fleet.wire.encodings.bundle import Bundle, Form
from fleet.wire.encodings.writing import write

_COMMON_NAME = "2.5.4.3"

Chain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where the files of one holder go: STEM.pem, STEM.key, STEM.p12 and ca.pem."""

    folder: Path
    stem: str
    shares_folder: bool = False
    """Whether other holders of this fleet may be in the folder already: ca.pem is theirs, too."""

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.stem}.pem"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.stem}.key"

    @property
    def pkcs12(self) -> Path:
        return self.folder / f"{self.stem}.p12"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def shown(self, leaf: x509.Certificate, *, without: str = "") -> dict[str, Any]:
        """What is printed once they are written, but for one key; None where there is no such file."""
        value = {
            "serial": f"{leaf.serial_number:x}",
            "not_after": leaf.not_valid_after_utc,
            "certificate": str(self.certificate),
            "key": str(self.key) if self.key.exists() else None,
            "pkcs12": str(self.pkcs12) if self.pkcs12.exists() else None,
            "ca_file": str(self.ca),
        }
        return {key: item for key, item in value.items() if key != without}


def enroll_with_files(
    client: Client, kind: str, terms: Row, files: KeyFiles, *, csr: bytes | None = None, password: bytes | None = None
) -> tuple[Row, x509.Certificate]:
    """Make a key, add a `kind` of these `terms` with a request for it, and write the files. The API's answer, and the
    certificate.

    `csr`: a request, DER, for a key that is elsewhere, in place of making one. `password`: of a PKCS#12 file to write.
    Nothing is overwritten, and a key that got no certificate is removed.

    Raises: Conflict (`file-exists`). CliError: enrolled, and a file could not be written. FleetError, OSError.
    """
    root = _root_of(client)
    _check_free(files, root)
    key: ec.EllipticCurvePrivateKey | None = None
    if csr is None:
        key = generate_key()
        write_key(files.key, key)
        csr = request_for(terms["name"], key)
    try:
        request = x509.load_der_x509_csr(csr)
        text = request.public_bytes(Encoding.PEM).decode()
        answer = client.post(f"/v1/{kind}s", {**terms, "csr": text})
        chain = _chain_for(request, answer, kind, terms["name"])
    except BaseException:
        if key is not None:
            with contextlib.suppress(FileNotFoundError):
                files.key.unlink()
        raise
    try:
        if not files.ca.exists():
            write_file(files.ca, root, secret=False)
        write_file(files.certificate, b"".join(each.public_bytes(Encoding.PEM) for each in chain), secret=False)
        if key is not None and password is not None:
            write_file(files.pkcs12, write(Bundle(chain, private_key=key), Form.P12, password), secret=True)
    except OSError as error:
        raise CliError(
            f"writing the files of {kind} '{terms['name']}'",
            f"it is registered, but {error.strerror} ({error.filename})",
            f"Run `fleet {kind} revoke {terms['name']}` and add one of another name",
        ) from error
    return answer, chain[0]


def _root_of(client: Client) -> bytes:
    """The fleet's root CA, PEM. Raises: Unavailable (`bad-answer`): there is none in the answer."""
    try:
        roots = [each["pem"] for each in client.get("/v1/authorities")["items"] if each["role"] == CaRole.ROOT]
        root = bytes(roots[0].encode())  # those of tenants come after it
        x509.load_pem_x509_certificate(root)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise bad_answer("it has no root CA") from None
    return root


def _chain_for(request: x509.CertificateSigningRequest, answer: Any, kind: str, name: str) -> Chain:
    """The chain in `answer`, of a certificate for the key of `request`. Raises: CliError (`bad-answer`): none is."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(answer["chain"].encode()))
        if chain[0].public_key() == request.public_key():
            return chain
    except (LookupError, TypeError, ValueError, AttributeError, UnsupportedAlgorithm):
        pass
    raise CliError(
        f"adding {kind} '{name}'",
        "it is registered, but the answer holds no certificate for its key, and no key was kept",
        f"Run `fleet {kind} revoke {name}` and add one of another name",
        "bad-answer",
    )


def request_for(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """DER of a certificate request for `name`."""
    return build_csr(key, ((_COMMON_NAME, name),), ())


def _check_free(files: KeyFiles, root: bytes) -> None:
    files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    alone = () if files.shares_folder else (files.ca,)
    for file in (files.certificate, files.key, files.pkcs12, *alone):
        # lexists: a symbolic link to nowhere would be followed by the write
        if os.path.lexists(file) or (file == files.ca and file not in alone):
            message = f"{file} exists, or is reserved; nothing was changed."
            raise Conflict("file-exists", message, "Use another name or folder.")
    if os.path.lexists(files.ca) and read_small(files.ca, CERTIFICATES_SIZE_MAX) != root:
        message = f"{files.ca} is the root CA of another fleet; nothing was changed."
        raise Conflict("file-exists", message, "Use another folder.")
