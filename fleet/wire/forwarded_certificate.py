"""Client certificates as reverse proxies and brokers forward them, read into DER.

    nginx     $ssl_client_escaped_cert        PEM, percent-encoded
    HAProxy   ssl_c_der,base64                base64 of DER
    Traefik   X-Forwarded-Tls-Client-Cert     base64 of DER, the client's own certificate first, commas in between
    Envoy     X-Forwarded-Client-Cert         Cert="..." of one element: PEM, percent-encoded
    EMQX      ${cert_pem} in a JSON body      base64 of PEM or of DER, or PEM; a chain in PEM, its own first

Each reads one certificate, the one whose key TLS has proved, and nothing of what is in it but its outer form.
"""

import hashlib
import re
from urllib.parse import unquote_to_bytes

from fleet.wire.armor import unwrap
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.errors import Malformed, TooLarge

VALUE_SIZE_MAX = 32 * 1024  # a chain of RSA-4096 in PEM, percent-encoded, has 12 KB
CHAIN_MAX = 10

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")  # printable ASCII without spaces; % only before two digits
_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;]*)([,;]|\Z)')
_ESCAPED = re.compile(r"\\(.)")


def from_escaped_pem(value: str) -> bytes:
    """Raises: Malformed, TooLarge."""
    _check_size(value)
    if not _ENCODED.fullmatch(value):
        raise Malformed("The certificate is not percent-encoded PEM.")
    return _in_pem(unquote_to_bytes(value), "The certificate is not percent-encoded PEM.")


def _in_pem(text: bytes, otherwise: str) -> bytes:
    """DER of the one certificate in PEM `text`. Raises: Malformed: with `otherwise`, where it is no PEM."""
    text = text.strip(b"\r\n")
    if text.count(_BEGIN) > 1:
        raise Malformed("There is more than one certificate.")
    if not (text.startswith(_BEGIN) and text.endswith(_END)):
        raise Malformed(otherwise)
    return _certificate(text[len(_BEGIN) : -len(_END)])


def from_emqx(value: str) -> bytes:
    """Raises: Malformed, TooLarge."""
    _check_size(value)
    not_pem = "The certificate is not PEM, nor base64 of a certificate."
    if not value.isascii():
        raise Malformed(not_pem)
    text = value.encode()
    if text.startswith(_BEGIN):
        return _first_in_pem(text, not_pem)
    data = unwrap(text)
    if data is None:
        raise Malformed(not_pem)
    if data.startswith(_BEGIN):
        return _first_in_pem(data, not_pem)
    certificate_fields(data)
    return data


def _first_in_pem(text: bytes, otherwise: str) -> bytes:
    """DER of the first of a chain's certificates, all of which are read. Raises: Malformed, TooLarge."""
    _, *chain = text.split(_BEGIN)
    if len(chain) > CHAIN_MAX:
        raise TooLarge(f"There are more than {CHAIN_MAX} certificates.")
    first, *_ = [_in_pem(_BEGIN + each, otherwise) for each in chain]
    return first


def from_base64(value: str) -> bytes:
    """Raises: Malformed, TooLarge."""
    _check_size(value)
    return _certificate(_ascii(value))


def from_traefik(value: str) -> bytes:
    """Raises: Malformed, TooLarge."""
    _check_size(value)
    if "%" in value:  # Traefik 2 escapes the value, 3 does not
        if not _ENCODED.fullmatch(value):
            raise Malformed("The certificate has a bad percent-encoding.")
        value = unquote_to_bytes(value).decode("latin-1")
    chain = value.split(",")
    if len(chain) > CHAIN_MAX:
        raise TooLarge(f"There are more than {CHAIN_MAX} certificates.")
    first, *_ = [_certificate(_ascii(each)) for each in chain]  # all are read: a damaged header is refused whole
    return first


def from_xfcc(value: str) -> bytes:
    """`Cert` of the only element; a `Hash` beside it must be its SHA-256. Raises: Malformed, TooLarge."""
    _check_size(value)
    pairs: dict[str, str] = {}
    at = 0
    while at < len(value):
        found = _PAIR.match(value, at)
        if found is None:
            raise Malformed("The header is not in the form of X-Forwarded-Client-Cert.")
        if found[3] == ",":
            raise Malformed("There is more than one element: let Envoy set the header, and not append to it.")
        name, text = found[1].lower(), found[2]
        if name in ("cert", "hash") and name in pairs:
            raise Malformed(f"There is more than one {found[1]}.")
        pairs[name] = _ESCAPED.sub(r"\1", text[1:-1]) if text.startswith('"') else text
        at = found.end()
    if "cert" not in pairs:
        raise Malformed("The header has no Cert: let Envoy forward it.")
    der = from_escaped_pem(pairs["cert"])
    if "hash" in pairs and pairs["hash"].lower() != hashlib.sha256(der).hexdigest():
        raise Malformed("Hash is not that of Cert.")
    return der


def _check_size(value: str) -> None:
    if len(value) > VALUE_SIZE_MAX:
        raise TooLarge(f"The certificate is longer than {VALUE_SIZE_MAX} characters.")


def _ascii(value: str) -> bytes:
    if not value.isascii() or any(map(str.isspace, value)):
        raise Malformed("The certificate is not base64.")
    return value.encode()


def _certificate(text: bytes) -> bytes:
    """The DER in base64 `text`. Raises: Malformed."""
    der = unwrap(text)
    if der is None:
        raise Malformed("The certificate is not base64.")
    certificate_fields(der)
    return der
