"""A certificate chain, verified as TLS on OpenSSL does."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from OpenSSL import crypto

from fleet.tls import engine

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the bindings do not name


def why_unverified(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    at: datetime | None,
    *,
    partial: bool = False,
    server: bool = True,
) -> str:
    """Why a client that trusts `anchors` rejects a server that sends `chain` at the time `at` (None: whatever its
    dates say); "" if it does not. With `partial`, an anchor need not be self-signed; without `server`, the chain is a
    client's.
    """
    store = crypto.X509Store()
    for anchor in anchors:
        store.add_cert(crypto.X509.from_cryptography(anchor))
    store.set_flags((crypto.X509StoreFlags.PARTIAL_CHAIN if partial else 0) | (0 if at else NO_CHECK_TIME))
    if at is not None:
        store.set_time(at)
    engine.verify_purpose(store, server=server)
    leaf, *others = map(crypto.X509.from_cryptography, chain)
    try:
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        depth = error.errors[1]
        who = error.certificate.to_cryptography().subject.rfc4514_string()
        return f"{error} (certificate {depth} of the chain, {who})"
    return ""
