"""Server-side TLS contexts: what we offer, what we ask of a client, and whom we believe.

TLS 1.3 and 1.2 only; on 1.2, ECDHE with AEAD only. No resumption of any kind: each connection proves itself anew and
is checked against live state. No renegotiation, no compression, no early data. A context is never changed once made:
build a fresh one and `swap` it in; running connections keep the one they began with.
"""

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from OpenSSL import SSL

from fleet.tls import engine

LEAVES_REMEMBERED = 4096  # what is held against a leaf is in its bytes alone; devices come again with the same ones
CHAIN_DEPTH_MAX = 5  # certificates between leaf and anchor; real device PKIs have one or two

# AEAD with forward secrecy. CCM is what small devices speak (RFC 7925); CCM-8 is left out for its 64-bit tag.
# AES-128 first: with SHA-256 it takes a thirtieth less of a handshake than AES-256 with SHA-384.
CIPHERS_TLS12 = b"ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM:!AESCCM8:!aNULL:!PSK"
CIPHERS_TLS13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_CCM_SHA256"
# The first list that the engine knows whole. The hybrid comes first: it is chosen when the client offers it.
GROUPS = (b"X25519MLKEM768:X25519:P-256:P-384:P-521", b"X25519:P-256:P-384:P-521")

# Who lists ChaCha20 first has no AES in silicon: let it have it. (OpenSSL's ssl.h; the bindings lack it.)
OP_PRIORITIZE_CHACHA = 1 << 21

OPTIONS = (
    SSL.OP_NO_TICKET
    | SSL.OP_NO_COMPRESSION
    | SSL.OP_NO_RENEGOTIATION
    | SSL.OP_CIPHER_SERVER_PREFERENCE
    | OP_PRIORITIZE_CHACHA
)


Clock = Callable[[], datetime]  # aware, UTC


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a server proves itself with."""

    certificate_chain: tuple[x509.Certificate, ...]
    """Leaf first, then the intermediates that a client needs to reach its anchor."""
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class TlsContext:
    """One ready set of rules, keys and anchors, shared by every connection that begins under it."""

    engine_context: SSL.Context
    clock: Clock
    """Certificates are judged by this clock, once for each connection, when it begins."""
    require_client: bool
    anchors: Mapping[int, bytes]
    """DER of each anchor, by its address in the engine."""
    tenants: Mapping[bytes, str] | None
    """Whose each issuing CA is, by its DER; None when all are the fleet's own."""


class ContextSource:
    """Holds the context for the next connection. Swapping it is the whole of a certificate rotation.

    `look`, when given, is called before each connection: it may swap.
    """

    __slots__ = ("_current", "look")

    def __init__(self, context: TlsContext, look: Callable[[], None] | None = None) -> None:
        self._current = context
        self.look = look

    @property
    def current(self) -> TlsContext:
        if self.look is not None:
            self.look()
        return self._current

    def swap(self, new: TlsContext) -> None:
        """Connections that begin from now on use `new`; those that have begun are not touched."""
        self._current = new


def server_context(
    identity: ServerIdentity,
    client_anchors: Sequence[x509.Certificate],
    *,
    require_client: bool,
    clock: Clock,
    expired_leaf: bool = False,
    tenants: Mapping[bytes, str] | None = None,
    makers: Sequence[x509.Certificate] = (),
) -> TlsContext:
    """A fresh context for `identity`, which believes clients whose chain ends at one of `client_anchors`.

    Every anchor is trusted for itself, self-signed or not: giving the issuing CA beside its root ends each chain at the
    issuing CA and saves a signature check on every handshake. With `require_client` false, a client may come without
    a certificate; one that it does present must pass all the same. With `expired_leaf`, a client whose certificate has
    expired is let in, for an application that asks for the time itself. `tenants` tells by the DER of an issuing CA
    whose it is, which becomes a peer's `tenant`; without, all are the fleet's own. `makers` are believed as well, for
    certificates as makers of devices issue them (IEEE 802.1AR), and those never when they have expired.

    Raises: ValueError: no certificate, no anchor, or the key is not the certificate's.
    """
    if not identity.certificate_chain:
        raise ValueError("A server identity needs a certificate.")
    if not client_anchors:
        raise ValueError("A server context needs a client anchor: without one nobody could be believed.")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_cipher_list(CIPHERS_TLS12)
    context.set_tls13_ciphersuites(CIPHERS_TLS13)
    if not any(engine.set_groups(context, names) for names in GROUPS):
        raise RuntimeError("The TLS engine knows none of our key exchange groups.")
    context.set_options(OPTIONS)
    _forbid_resumption(context)
    _present(context, identity)
    anchors = _believe(context, client_anchors, makers, require_client=require_client, expired_leaf=expired_leaf)
    return TlsContext(context, clock, require_client, anchors, tenants)


def _forbid_resumption(context: SSL.Context) -> None:
    """A resumed session would skip the certificate check.

    OP_NO_TICKET leaves TLS 1.2 without tickets and turns those of TLS 1.3 into names of cache entries; with no cache,
    they name nothing. The random id makes sessions of another context foreign to this one, should one ever appear.
    """
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF | SSL.SESS_CACHE_NO_INTERNAL)
    context.set_session_id(secrets.token_bytes(32))


def _present(context: SSL.Context, identity: ServerIdentity) -> None:
    leaf, *intermediates = identity.certificate_chain
    if leaf.public_key() != identity.private_key.public_key():
        raise ValueError("The server's private key is not that of its certificate.")
    context.use_certificate(leaf)
    for certificate in intermediates:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(identity.private_key)
    context.check_privatekey()


def _believe(
    context: SSL.Context,
    anchors: Sequence[x509.Certificate],
    makers: Sequence[x509.Certificate],
    *,
    require_client: bool,
    expired_leaf: bool,
) -> Mapping[int, bytes]:
    # Each once: of two alike the store would hold the first only. One that is ours is never a maker's as well.
    known = dict(engine.add_anchor(context, anchor) for anchor in dict.fromkeys(anchors))
    theirs = dict(engine.add_anchor(context, maker) for maker in dict.fromkeys(makers) if maker not in anchors)
    engine.trust_each_anchor(context)
    context.set_verify_depth(CHAIN_DEPTH_MAX)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if require_client else 0)
    engine.verify_clients(context, mode, _objection, _objection_to_makers, frozenset(theirs), expired_leaf=expired_leaf)
    return known | theirs


@functools.lru_cache(maxsize=LEAVES_REMEMBERED)
def _objection_to_makers(leaf_der: bytes) -> str:
    """What we hold against a maker's leaf that the engine has accepted; "" when nothing.

    IEEE 802.1AR, 8.10 asks for no extended key usage, and few makers put one in; where there is one, the engine has
    seen that it allows a client. A key usage, where there is one, must allow signing: that is how TLS proves the key.
    """
    try:
        extensions = x509.load_der_x509_certificate(leaf_der).extensions
        found = {extension.oid: extension.value for extension in extensions}
    except (x509.DuplicateExtension, ValueError):  # ValueError: an extension that is not DER
        return "the certificate's extensions cannot be read"
    usage, constraints = found.get(ExtensionOID.KEY_USAGE), found.get(ExtensionOID.BASIC_CONSTRAINTS)
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        return "key usage does not hold digitalSignature"
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        return "a CA is no device"
    return ""


@functools.lru_cache(maxsize=LEAVES_REMEMBERED)
def _objection(leaf_der: bytes) -> str:
    """What we hold against a leaf that the engine has accepted; "" when nothing.

    The engine accepts a leaf without extended key usage. RFC 5280, 4.2.1.12 lets us ask for it, and we do: a server's
    certificate, or one for signing code, of the same CA must not become a device.
    """
    try:
        usage = x509.load_der_x509_certificate(leaf_der).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return "extended key usage clientAuth is missing"
    except (x509.DuplicateExtension, ValueError):  # ValueError: an extension that is not DER
        return "the certificate's extensions cannot be read"
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage.value:
        return "extended key usage does not hold clientAuth"
    return ""
