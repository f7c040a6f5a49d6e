"""OpenSSL calls that pyOpenSSL does not wrap, or wraps with copies too expensive for a busy gateway.

pyOpenSSL is a thin layer over the OpenSSL inside `cryptography`'s wheel, and both share one set of bindings. Everything
beyond pyOpenSSL's public names is in this module, so that a new release is checked in one place.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

_binding = Binding()
lib: Any = _binding.lib
ffi: Any = _binding.ffi

READ_SIZE = 256 * 1024  # one read of the socket, and so one batch for the application; asyncio's own default
RECORD_SIZE = 16 * 1024 + 256 + 5  # the largest that TLS allows, with its header (RFC 8446, 5.2)
SLICE_SIZE = 32 * 1024  # ciphertext per engine call: its memory BIOs grow to this and never shrink


class Scratch:
    """Buffers shared by the connections of one event loop: each use ends before the next begins.

    Never share one between threads: the engine works outside the interpreter's lock.
    """

    __slots__ = ("get_buffer", "ignored", "plain", "plain_size", "received", "received_view", "sealed", "sealed_size")

    def __init__(self) -> None:
        self.received: Any = ffi.new("char[]", READ_SIZE)
        self.received_view = memoryview(ffi.buffer(self.received))
        """Receive buffer of the socket."""
        view = self.received_view
        self.get_buffer: Callable[[int], memoryview] = lambda sizehint: view
        """The same, as an asyncio.BufferedProtocol gives it."""
        self.plain_size = READ_SIZE + RECORD_SIZE  # a batch, and a record of which the engine lacked the end
        self.plain: Any = ffi.new("char[]", self.plain_size)
        self.sealed_size = SLICE_SIZE + 4 * RECORD_SIZE  # a slice in records, and alerts
        self.sealed: Any = ffi.new("char[]", self.sealed_size)
        self.ignored: Any = ffi.new("char **")


def set_groups(context: SSL.Context, names: bytes) -> bool:
    """Key exchange groups in order of preference, separated by colons; False when the engine lacks one of them."""
    if lib.SSL_CTX_set1_curves_list(_pointer(context), names) == 1:
        return True
    lib.ERR_clear_error()
    return False


def trust_each_anchor(context: SSL.Context) -> None:
    """Accept a chain that ends at any certificate of the store, self-signed or not."""
    store = lib.SSL_CTX_get_cert_store(_pointer(context))
    if lib.X509_STORE_set_flags(store, lib.X509_V_FLAG_PARTIAL_CHAIN) != 1:
        raise RuntimeError("The TLS engine refused the flag for partial chains.")


def verify_purpose(store: crypto.X509Store, *, server: bool) -> None:
    """Verify chains against `store` as those of a TLS server, or of a client."""
    purpose = lib.X509_PURPOSE_SSL_SERVER if server else lib.X509_PURPOSE_SSL_CLIENT
    if lib.X509_STORE_set_purpose(store._store, purpose) != 1:
        raise RuntimeError("The TLS engine refused the purpose.")


def _take_tickets_back(ssl: Any, alert: Any, argument: Any) -> int:
    lib.SSL_set_options(ssl, SSL.OP_NO_TICKET)
    return 0  # SSL_TLSEXT_ERR_OK


_ON_SERVER_NAME = ffi.callback("int (*)(SSL *, int *, void *)", _take_tickets_back, error=2)  # a fatal alert


def send_no_tickets(context: SSL.Context) -> None:
    """End no handshake with session tickets. Two would cost 15 µs of each on TLS 1.3, whatever OP_NO_TICKET says there.

    The bindings lack SSL_CTX_set_num_tickets. But the engine drops the tickets that it was going to send when the
    server_name callback, which it calls in every handshake, sets the option; it must not be set before.
    """
    lib.SSL_CTX_set_tlsext_servername_callback(_pointer(context), _ON_SERVER_NAME)


def set_verification_time(connection: SSL.Connection, seconds: int) -> None:
    """Verify certificates at `seconds` since 1970 instead of the engine's clock."""
    lib.X509_VERIFY_PARAM_set_time(lib.SSL_get0_param(ssl_of(connection)), seconds)


def handshake(connection: SSL.Connection) -> bool:
    """Continue the handshake with the bytes available; whether it is complete. Raises: SSL.Error: it failed."""
    ssl = ssl_of(connection)
    lib.ERR_clear_error()
    result = lib.SSL_do_handshake(ssl)
    if result == 1:
        return True
    # No exception for this case: every handshake waits for the client once.
    if lib.SSL_get_error(ssl, result) == lib.SSL_ERROR_WANT_READ:
        return False
    connection._raise_ssl_error(ssl, result)
    raise SSL.Error("the engine gave no reason")


def ssl_of(connection: SSL.Connection) -> Any:
    """The engine's SSL pointer, valid as long as `connection`."""
    return connection._ssl


def bios_of(connection: SSL.Connection) -> tuple[Any, Any]:
    """The memory BIOs into and out of the engine; owned by the SSL object."""
    return connection._into_ssl, connection._from_ssl


def renew_bios(connection: SSL.Connection) -> tuple[Any, Any]:
    """Give the engine new memory BIOs in place of those that it has, whatever is in them: a BIO never shrinks."""
    connection._into_ssl, connection._from_ssl = (lib.BIO_new(lib.BIO_s_mem()) for _ in range(2))
    if ffi.NULL in bios_of(connection):
        raise MemoryError
    lib.SSL_set_bio(ssl_of(connection), *bios_of(connection))  # it owns them from now on, and frees the others
    return bios_of(connection)


def _pointer(context: SSL.Context) -> Any:
    return context._context


def verify_clients(
    context: SSL.Context,
    mode: int,
    objection: Callable[[bytes], str],
    other_objection: Callable[[bytes], str],
    others: frozenset[int],
    *,
    expired_leaf: bool = False,
) -> None:
    """Verify client chains and pass each verified leaf's DER to `objection`, which returns "" to accept it; for a
    chain that ends at one of `others`, anchors by their address in the engine, to `other_objection`.

    With `expired_leaf`, a leaf that is valid but for its notAfter is accepted too.

    The reason for a rejection is stored as the connection's app data, a str; so is an accepted leaf's DER, as bytes.
    The callback replaces pyOpenSSL's, which creates an object for every certificate of the chain.
    """

    def verify(engine_says: int, store_context: Any) -> int:
        at_leaf = lib.X509_STORE_CTX_get_error_depth(store_context) == 0
        if not engine_says and at_leaf and expired_leaf and _is_only_late(store_context, others):
            # Its signature is verified by now; the remaining checks follow.
            lib.X509_STORE_CTX_set_error(store_context, lib.X509_V_OK)
            return 1
        if engine_says and not at_leaf:
            return 1
        leaf_der = b""
        if not engine_says:
            complaint = verify_error_text(lib.X509_STORE_CTX_get_error(store_context))
        else:
            leaf_der = _der_of(lib.X509_STORE_CTX_get_current_cert(store_context))
            is_other = bool(others) and _anchor_address(store_context) in others
            complaint = (other_objection if is_other else objection)(leaf_der)
        ssl = lib.X509_STORE_CTX_get_ex_data(store_context, lib.SSL_get_ex_data_X509_STORE_CTX_idx())
        SSL.Connection._reverse_mapping[ssl].set_app_data(complaint or leaf_der)
        if complaint and engine_says:
            # The engine's alert for it is unsupported_certificate.
            lib.X509_STORE_CTX_set_error(store_context, lib.X509_V_ERR_INVALID_PURPOSE)
        return 0 if complaint else 1

    # An exception in the callback is printed and counts as 0: rejected.
    callback = ffi.callback("int (*)(int, X509_STORE_CTX *)", verify, error=0)
    context.set_app_data(callback)  # kept alive by the connections that hold the context
    lib.SSL_CTX_set_verify(_pointer(context), mode, callback)


def _is_only_late(store_context: Any, others: frozenset[int]) -> bool:
    """Whether the engine rejects a leaf for its notAfter only, and its chain does not end at one of `others`."""
    if lib.X509_STORE_CTX_get_error(store_context) != lib.X509_V_ERR_CERT_HAS_EXPIRED:
        return False
    return _anchor_address(store_context) not in others


def _anchor_address(store_context: Any) -> int:
    """Address in the engine of the last certificate of the chain being verified; 0 for none."""
    chain = lib.X509_STORE_CTX_get1_chain(store_context)
    if chain == ffi.NULL:
        return 0
    certificates = [lib.sk_X509_value(chain, index) for index in range(lib.sk_X509_num(chain))]
    for certificate in certificates:
        lib.X509_free(certificate)  # their reference counts were increased for us; the verification still owns them
    lib.sk_X509_free(chain)
    return int(ffi.cast("uintptr_t", certificates[-1])) if certificates else 0


def add_anchor(context: SSL.Context, anchor: x509.Certificate) -> tuple[int, bytes]:
    """Trust `anchor` in `context`, name it in CertificateRequest, and return its address in the engine and its DER."""
    store, certificate = context.get_cert_store(), crypto.X509.from_cryptography(anchor)
    if store is None:
        raise RuntimeError("The TLS engine gave a context no store.")
    store.add_cert(certificate)
    context.add_client_ca(anchor)
    # The store owns this object from now on, so its address stays unique.
    return int(ffi.cast("uintptr_t", certificate._x509)), anchor.public_bytes(Encoding.DER)


def verified_chain_der(connection: SSL.Connection, anchors: Mapping[int, bytes]) -> tuple[bytes, ...]:
    """DER of the verified chain, leaf first; empty when the peer presented none. `anchors` as returned by `add_anchor`.

    Uses the engine's own encoding, as certificate objects would cost more than the rest of this function. The leaf's
    DER was stored at its verification, an anchor's when it was added.
    """
    stack = lib.SSL_get0_verified_chain(ssl_of(connection))
    if stack == ffi.NULL:
        return ()
    leaf: bytes = connection.get_app_data()
    above = [lib.sk_X509_value(stack, index) for index in range(1, lib.sk_X509_num(stack))]
    return (leaf, *[anchors.get(int(ffi.cast("uintptr_t", each))) or _der_of(each) for each in above])


def version_of(connection: SSL.Connection) -> str:
    """The protocol version of a finished handshake."""
    return _text(lib.SSL_get_version(ssl_of(connection)))


def agreed_on(connection: SSL.Connection) -> tuple[str, str]:
    """Cipher and key exchange group of a finished handshake; "" where the engine reports none."""
    ssl = ssl_of(connection)
    return (
        _text(lib.SSL_CIPHER_get_name(lib.SSL_get_current_cipher(ssl))),
        _text(lib.SSL_get0_group_name(ssl)) if lib.Cryptography_HAS_SSL_GET0_GROUP_NAME else "",
    )


def has_extended_master_secret(connection: SSL.Connection) -> bool:
    """RFC 7627. False where the engine does not say."""
    if not lib.Cryptography_HAS_GET_EXTMS_SUPPORT:
        return False
    return bool(lib.SSL_get_extms_support(ssl_of(connection)) == 1)


def _text(name: Any) -> str:
    return "" if name == ffi.NULL else sys.intern(bytes(ffi.string(name)).decode())


def _der_of(certificate: Any) -> bytes:
    bio = lib.BIO_new(lib.BIO_s_mem())
    try:
        lib.i2d_X509_bio(bio, certificate)
        start = ffi.new("char **")
        size = lib.BIO_get_mem_data(bio, start)
        return bytes(ffi.buffer(start[0], size))
    finally:
        lib.BIO_free(bio)


def verify_error_text(code: int) -> str:
    """The engine's text for a certificate verification error."""
    return str(ffi.string(lib.X509_verify_cert_error_string(code)).decode())
