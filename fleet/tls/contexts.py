"""Server-side TLS contexts: protocol versions, ciphers, client authentication and trust anchors.

TLS 1.3 and 1.2 only; on 1.2, ECDHE with AEAD only. No session resumption: every connection authenticates and
is checked against live state. No renegotiation, no compression, no early data. A context is immutable:
build a new one and `swap` it in; established connections keep theirs.
"""

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from fleet.config.clock import Clock
from fleet.tls import engine
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.errors import WireError

LEAVES_REMEMBERED = 4096  # the verdict on a leaf depends on its bytes alone, and devices reconnect with the same one
CHAIN_DEPTH_MAX = 5  # certificates between leaf and anchor; real device PKIs have one or two

# AEAD with forward secrecy. CCM is for constrained devices (RFC 7925); CCM-8 is excluded for its 64-bit tag.
# AES-128 first: with SHA-256 a handshake costs 3 % less than with AES-256 and SHA-384.
CIPHERS_TLS12 = b"ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM:!AESCCM8:!aNULL:!PSK"
CIPHERS_TLS13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_CCM_SHA256"
# The first list that the engine supports completely. The hybrid group is preferred where the client offers it.
GROUPS = (b"X25519MLKEM768:X25519:P-256:P-384:P-521", b"X25519:P-256:P-384:P-521")

# A client that prefers ChaCha20 has no AES hardware. (From OpenSSL's ssl.h; the bindings lack it.)
OP_PRIORITIZE_CHACHA = 1 << 21

OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE | OP_PRIORITIZE_CHACHA


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """A server's certificate chain and private key."""

    certificate_chain: tuple[x509.Certificate, ...]
    """Leaf first, then the intermediates up to the client's trust anchor."""
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    staple: Callable[[], bytes] | None = None
    """The OCSP answer about the leaf, DER, for a client that asks for it (RFC 6066, 8); b"" for none."""


@dataclass(frozen=True, slots=True)
class TlsContext:
    """One immutable configuration, shared by every connection that starts with it."""

    engine_context: SSL.Context
    clock: Clock
    """Certificates are verified at this clock's time, read once at the start of each connection."""
    require_client: bool
    anchors: Mapping[int, bytes]
    """Address in the engine -> DER, for each anchor."""
    tenants: Mapping[bytes, str] | None
    """DER of an issuing CA -> its tenant; None: all are the fleet's own."""


class ContextSource:
    """Holds the context of the next connection. Certificate rotation is one `swap`.

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
        """Use `new` for connections accepted from now on; established ones are unaffected."""
        self._current = new


@dataclass(frozen=True, slots=True)
class ClientTrust:
    """CAs that client certificates are verified against."""

    anchors: Sequence[x509.Certificate]
    tenants: Mapping[bytes, str] | None = None
    """DER of an issuing CA -> its tenant, the peer's `tenant`; None: all are the fleet's own."""
    manufacturers: Sequence[x509.Certificate] = ()
    """Further anchors, for certificates of device manufacturers (IEEE 802.1AR), never accepted when expired."""


def server_context(
    identity: ServerIdentity,
    trust: ClientTrust,
    *,
    require_client: bool,
    clock: Clock,
    expired_leaf: bool = False,
    alpn: Sequence[bytes] = (),
) -> TlsContext:
    """A context for `identity` that accepts clients whose chain ends at an anchor of `trust`.

    Every anchor is trusted as such, self-signed or not: with the issuing CA given beside its root, chains end at the
    issuing CA, which saves a signature verification in every handshake. With `require_client` false a client may omit
    its certificate; one that it presents must verify all the same. With `expired_leaf` an expired client certificate
    is accepted, for an application that checks the time itself. A client that offers a protocol of `alpn` (RFC 7301)
    gets the first of these, one that offers others alone is refused, and one that offers none connects.

    Raises: ValueError: no certificate, no anchor, or the key is not the certificate's.
    """
    if not identity.certificate_chain:
        raise ValueError("A server identity needs a certificate.")
    if not trust.anchors:
        raise ValueError("A server context needs a client trust anchor.")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_cipher_list(CIPHERS_TLS12)
    context.set_tls13_ciphersuites(CIPHERS_TLS13)
    if not any(engine.set_groups(context, names) for names in GROUPS):
        raise RuntimeError("The TLS engine knows none of our key exchange groups.")
    context.set_options(OPTIONS)
    # From the first record on: set after the handshake, it does not count for the buffer of what is sent.
    # Those of 16,000 idle devices would take 0.5 GB.
    context.set_mode(engine.lib.SSL_MODE_RELEASE_BUFFERS)
    _forbid_resumption(context)
    _present(context, identity)
    if alpn:
        context.set_alpn_select_callback(partial(_selected, tuple(alpn)))
    anchors = _trust(context, trust, require_client=require_client, expired_leaf=expired_leaf)
    return TlsContext(context, clock, require_client, anchors, trust.tenants)


def _selected(alpn: Sequence[bytes], connection: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    """RFC 7301, 3.2: with none in common, a fatal no_application_protocol. pyOpenSSL sends it for whatever is raised
    here, and raises that from the handshake.
    """
    for each in alpn:
        if each in offered:
            return each
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _forbid_resumption(context: SSL.Context) -> None:
    """A resumed session would skip the certificate check.

    There are neither tickets nor a cache. The random session id context makes sessions of another context unusable
    here.
    """
    engine.send_no_tickets(context)
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
    if (staple := identity.staple) is not None:
        context.set_ocsp_server_callback(lambda connection, data: staple())


def _trust(
    context: SSL.Context, trust: ClientTrust, *, require_client: bool, expired_leaf: bool
) -> Mapping[int, bytes]:
    # Without duplicates, of which the store keeps the first only. A CA of ours is never a manufacturer's too.
    own = dict(engine.add_anchor(context, anchor) for anchor in dict.fromkeys(trust.anchors))
    foreign = [ca for ca in dict.fromkeys(trust.manufacturers) if ca not in trust.anchors]
    manufacturers = dict(engine.add_anchor(context, ca) for ca in foreign)
    engine.trust_each_anchor(context)
    context.set_verify_depth(CHAIN_DEPTH_MAX)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if require_client else 0)
    engine.verify_clients(
        context, mode, _rejection, _rejection_of_manufacturer, frozenset(manufacturers), expired_leaf=expired_leaf
    )
    return own | manufacturers


@functools.lru_cache(maxsize=LEAVES_REMEMBERED)
def _rejection_of_manufacturer(leaf_der: bytes) -> str:
    """Reason to reject a manufacturer's leaf that the engine has accepted; "" for none.

    IEEE 802.1AR, 8.10 requires no extended key usage, and few manufacturers include one; the engine has checked that
    one present allows clientAuth. A key usage present must allow digitalSignature, with which TLS proves the key.
    """
    try:
        fields = certificate_fields(leaf_der)
        usage, constraints = fields.key_usage, fields.basic_constraints
    except WireError:
        return "the certificate's extensions cannot be read"
    if usage is not None and "digitalSignature" not in usage:
        return "key usage does not hold digitalSignature"
    if constraints is not None and constraints[0]:
        return "a CA is no device"
    return ""


@functools.lru_cache(maxsize=LEAVES_REMEMBERED)
def _rejection(leaf_der: bytes) -> str:
    """Reason to reject a leaf that the engine has accepted; "" for none.

    The engine accepts a leaf without extended key usage. We require clientAuth, as RFC 5280, 4.2.1.12 allows: a server
    or code signing certificate of the same CA must not authenticate a device.
    """
    try:
        usages = certificate_fields(leaf_der).extended_key_usage
    except WireError:
        return "the certificate's extensions cannot be read"
    if usages is None:
        return "extended key usage clientAuth is missing"
    if ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string not in usages:
        return "extended key usage does not hold clientAuth"
    return ""
