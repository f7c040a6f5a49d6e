"""Credentials of a request beside the client certificate: HTTP Basic, and the binding to the TLS connection."""

import base64
import binascii
import hmac
from collections.abc import Hashable

from fleet.domain.errors import Unauthenticated
from fleet.domain.issuance_context import EnrollmentRequest, Names
from fleet.domain.peer import Peer, network_of
from fleet.servers.http import Exchange
from fleet.services.credentials import BasicCredentials, token_parts
from fleet.wire.csr import Csr

CHALLENGE = {"WWW-Authenticate": 'Basic realm="estrealm"'}


def basic_credentials(exchange: Exchange) -> BasicCredentials | None:
    """The request's HTTP Basic credentials (RFC 7617); None without an Authorization header. Parsed once.

    Raises: Unauthenticated (`bad-authorization`) for another scheme or a malformed header, which is never repeated.
    """
    if isinstance(exchange.credentials, BasicCredentials):
        return exchange.credentials
    given = exchange.request.headers.getall("Authorization", ())
    if not given:
        return None
    if len(given) > 1:
        # A proxy before us and we might read another one each.
        raise Unauthenticated("bad-authorization", "There are several Authorization headers; send one.")
    exchange.credentials = parsed = parse_basic(given[0])
    return parsed


def parse_basic(authorization: str) -> BasicCredentials:
    """Raises: as `basic_credentials`."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError("another scheme")
        text = binascii.a2b_base64(encoded.strip(" "), strict_mode=True).decode("utf-8")
    except ValueError:  # binascii.Error and UnicodeDecodeError are ValueErrors
        raise Unauthenticated(
            "bad-authorization", "The Authorization header is not HTTP Basic with UTF-8 text."
        ) from None
    username, _, password = text.partition(":")
    return BasicCredentials(username, password)


def rate_key_of(exchange: Exchange) -> Hashable | None:
    """The credential by which requests are counted, valid or not: the certificate or the token id, for each source
    address. So nobody who tries another's token can slow down its owner, and no device of a batch the others that share
    its claim.
    """
    source = network_of(exchange.peer.address)
    if exchange.peer.fingerprint is not None:
        return source, exchange.peer.fingerprint
    try:
        presented = basic_credentials(exchange)
    except Unauthenticated:
        return None
    return (source, token_parts(presented.password)[0]) if presented is not None else None


def request_of(csr: Csr, peer: Peer) -> EnrollmentRequest:
    """The contents of `csr`, and whether it is bound to the connection of `peer`."""
    return EnrollmentRequest(
        names=Names(csr.subject, csr.alt_names),
        key_type=csr.key_type,
        spki_der=csr.spki_der,
        key_sha256=csr.key_sha256,
        is_bound=_is_bound(csr, peer),
        extended_key_usages=csr.extended_key_usages,
    )


def _is_bound(csr: Csr, peer: Peer) -> bool | None:
    """RFC 7030, 3.5: base64 of tls-unique in the challengePassword; on TLS 1.3, and on TLS 1.2 with an extended master
    secret, RFC 9266's tls-exporter in its place.

    A value that is present must be verified. A client that does not bind omits it or leaves it empty.
    """
    if not csr.challenge_password:
        return None
    given = csr.challenge_password.encode()
    bindings = (read() for read in (peer.read_channel_binding, peer.read_exporter))
    return any(hmac.compare_digest(given, base64.b64encode(binding)) for binding in bindings if binding)
