"""The file that a program is given as the CAs to trust, in whatever form: PEM, DER, base64 or PKCS#7."""

from fleet.wire import armor
from fleet.wire.errors import Malformed
from fleet.wire.text import UTF8_MARK, UTF16_MARKS


def ca_pem(data: bytes) -> str:
    """The certificates in `data`, at least one, as PEM for `ssl.SSLContext.load_verify_locations(cadata=...)`.

    PEM is passed on as it is: a bundle of all public roots may be large, and needs no parser but the library's. Two
    blocks that were glued together without a newline are taken apart: the library refuses them.

    Raises: WireError: TooLarge, Malformed, Unsupported.
    """
    is_plain = not data.startswith((UTF8_MARK, *UTF16_MARKS)) and b"----------BEGIN" not in data
    if b"-----BEGIN CERTIFICATE-----" in data and is_plain:
        return data.decode("ascii", "replace")
    from cryptography.hazmat.primitives.serialization import Encoding  # 10 MB that an agent seldom needs

    from fleet.wire.encodings.reading import read

    certificates = read(data).certificates
    if not certificates:
        raise Malformed("The file holds no certificate.")
    return "".join(armor.pem("CERTIFICATE", each.public_bytes(Encoding.DER)) for each in certificates)
