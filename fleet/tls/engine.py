"""The calls of OpenSSL that pyOpenSSL does not wrap, or wraps with copies that a busy gateway would feel.

pyOpenSSL is a thin layer over the OpenSSL inside `cryptography`'s wheel, and both share one set of bindings. Everything
that reaches past pyOpenSSL's public names stands in this module, so that a new release of it is checked in one place.
"""

from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

_binding = Binding()
lib: Any = _binding.lib
ffi: Any = _binding.ffi

READ_SIZE = 256 * 1024  # one read of the socket, and so one batch for the application; asyncio's own default
SLICE_SIZE = 32 * 1024  # ciphertext given to the engine at once: its memory BIOs grow to this and never shrink


class Scratch:
    """Buffers that every connection of one event loop shares: each use ends before the next one begins.

    Never share one between threads: the engine works outside the interpreter's lock.
    """

    __slots__ = ("ignored", "plain", "received", "received_view", "sealed")

    def __init__(self) -> None:
        self.received: Any = ffi.new("unsigned char[]", READ_SIZE)
        self.received_view = memoryview(ffi.buffer(self.received))
        # A slice, and what the engine had kept of the record before it.
        self.plain: Any = ffi.new("char[]", SLICE_SIZE + 20 * 1024)
        self.sealed: Any = ffi.new("char[]", SLICE_SIZE + 20 * 1024)
        self.ignored: Any = ffi.new("char **")


def set_groups(context: SSL.Context, names: bytes) -> bool:
    """Key exchange groups in order of preference, separated by colons; False when the engine lacks one of them."""
    if lib.SSL_CTX_set1_curves_list(_pointer(context), names) == 1:
        return True
    lib.ERR_clear_error()
    return False


def trust_each_anchor(context: SSL.Context) -> None:
    """Let a chain end at any certificate of the store, self-signed or not."""
    store = lib.SSL_CTX_get_cert_store(_pointer(context))
    if lib.X509_STORE_set_flags(store, lib.X509_V_FLAG_PARTIAL_CHAIN) != 1:
        raise RuntimeError("The TLS engine refused the flag for partial chains.")


def set_verification_time(connection: SSL.Connection, seconds: int) -> None:
    """Judge certificates as of `seconds` since 1970, instead of the engine's own clock."""
    lib.X509_VERIFY_PARAM_set_time(lib.SSL_get0_param(ssl_of(connection)), seconds)


def ssl_of(connection: SSL.Connection) -> Any:
    """The engine's SSL pointer; alive as long as `connection` is."""
    return connection._ssl


def bios_of(connection: SSL.Connection) -> tuple[Any, Any]:
    """The memory BIOs into and out of the engine; owned by the SSL object."""
    return connection._into_ssl, connection._from_ssl


def _pointer(context: SSL.Context) -> Any:
    return context._context


def verified_chain_der(connection: SSL.Connection, scratch: Scratch) -> tuple[bytes, ...]:
    """DER of the chain that was verified, leaf first; empty when the peer presented none.

    Goes by the engine's own encoding: making certificate objects of them would cost more than all the rest here.
    """
    stack = lib.SSL_get0_verified_chain(ssl_of(connection))
    if stack == ffi.NULL:
        return ()
    bio = ffi.gc(lib.BIO_new(lib.BIO_s_mem()), lib.BIO_free)
    chain = []
    for index in range(lib.sk_X509_num(stack)):
        lib.i2d_X509_bio(bio, lib.sk_X509_value(stack, index))
        parts = []
        while (size := lib.BIO_read(bio, scratch.plain, len(scratch.plain))) > 0:
            parts.append(bytes(ffi.buffer(scratch.plain, size)))
        chain.append(b"".join(parts))
    return tuple(chain)


def verify_error_text(code: int) -> str:
    """The engine's sentence for a certificate verification error."""
    return str(ffi.string(lib.X509_verify_cert_error_string(code)).decode())
