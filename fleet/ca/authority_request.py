"""Request for an issuing CA that is signed elsewhere (PKCS#10), and its reader at an offline root."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fleet.ca.authority import common_name
from fleet.ca.profiles import SIGNS_CERTIFICATES
from fleet.domain.errors import Invalid

REQUEST_SIZE_MAX = 16 * 1024


def authority_request(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The request, PEM: it asks for CA:TRUE with path length 0, and to sign certificates and CRLs."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(SIGNS_CERTIFICATES, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_authority_request(data: bytes) -> tuple[x509.Name, ec.EllipticCurvePublicKey]:
    """Common name and P-256 key of the request in `data`, PEM or DER. Nothing else of it counts.

    Raises: Invalid (`bad-csr`, `bad-name`).
    """
    if len(data) > REQUEST_SIZE_MAX:
        raise Invalid("bad-csr", f"The request is larger than {REQUEST_SIZE_MAX} bytes.")
    load = x509.load_pem_x509_csr if b"-----BEGIN" in data else x509.load_der_x509_csr
    try:
        request = load(data)
        is_signed = request.is_signature_valid
        key = request.public_key()
        names = [each.value for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise Invalid("bad-csr", "The file holds no certificate request.", "Make it with: fleet ca csr") from None
    if not is_signed:
        raise Invalid("bad-csr", "The request's own signature does not verify.", "It was changed on its way.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("bad-csr", "The request's key is not P-256.", "Make it with: fleet ca csr")
    if len(names) != 1 or not isinstance(names[0], str):
        raise Invalid("bad-csr", "The request's subject has no common name, or several.", "Make it with: fleet ca csr")
    return common_name(names[0]), key
