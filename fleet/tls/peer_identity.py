"""Peer identity: what a completed handshake has proved, as a frozen Peer."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from weakref import ref

from OpenSSL import SSL

from fleet.domain.peer import Peer
from fleet.tls import engine

EXPORTER_LABEL = b"EXPORTER-Channel-Binding"  # RFC 9266, 4.2
EXPORTER_SIZE = 32


def peer_of(
    connection: SSL.Connection, address: str, anchors: Mapping[int, bytes], tenants: Mapping[bytes, str] | None = None
) -> Peer:
    """The Peer of `connection`, whose handshake has just completed. `anchors`, `tenants`: its context's."""
    chain = engine.verified_chain_der(connection, anchors)
    version = engine.version_of(connection)
    binding_type, binding = _BINDINGS[version]
    living = ref(connection)  # a Peer that is kept must not keep the engine's 30 KB
    return Peer(
        address=address,
        certificate_der=chain[0] if chain else None,
        chain_der=chain,
        fingerprint=hashlib.sha256(chain[0]).digest() if chain else None,
        tenant=_signer(chain, tenants),
        tls_version=version,
        channel_binding_type=binding_type,
        read_channel_binding=partial(_while_it_lives, binding, living),
        read_exporter=partial(_while_it_lives, _late_exporter, living) if version == "TLSv1.2" else bytes,
        read_agreed=partial(_agreed, living),
    )


def _signer(chain: tuple[bytes, ...], tenants: Mapping[bytes, str] | None) -> str | None:
    """The tenant of the CA that issued the leaf, from the verified chain, not from what the client sent."""
    if tenants is None or not chain:
        return ""
    return tenants.get(chain[1]) if len(chain) > 1 else None


def _while_it_lives(binding: Callable[[SSL.Connection], bytes], connection: ref[SSL.Connection]) -> bytes:
    living = connection()
    return b"" if living is None else binding(living)


def _agreed(connection: ref[SSL.Connection]) -> tuple[str, str]:
    living = connection()
    return ("", "") if living is None else engine.agreed_on(living)


def _tls_exporter(connection: SSL.Connection) -> bytes:
    # RFC 9266, 4.2: zero-length context. On TLS 1.3 it equals no context (RFC 8446, 7.5).
    return connection.export_keying_material(EXPORTER_LABEL, EXPORTER_SIZE, b"")


def _late_exporter(connection: SSL.Connection) -> bytes:
    # RFC 9266, 2: on TLS 1.2, an exporter identifies its connection only with an extended master secret.
    return _tls_exporter(connection) if engine.has_extended_master_secret(connection) else b""


def _tls_unique(connection: SSL.Connection) -> bytes:
    # RFC 5929, 3.1: the first Finished of the handshake. In a full handshake, the only kind here, the client's.
    return connection.get_peer_finished() or b""


_BINDINGS = {"TLSv1.3": ("tls-exporter", _tls_exporter), "TLSv1.2": ("tls-unique", _tls_unique)}
