"""TLS as a client of the fleet: one fresh context for each connection, the server always verified."""

import ssl
from pathlib import Path

from device_agent.errors import BadConfig, StoreDamaged

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the ssl module does not name.
_NO_CHECK_TIME = 0x200000


def client_context(
    ca_file: Path,
    certificate: tuple[Path, Path] | None = None,
    *,
    check_time: bool = True,
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> ssl.SSLContext:
    """A context that trusts `ca_file` alone, checks the host name, and presents `certificate` (PEM chain, PEM key).

    Always a new one: after a failed load_cert_chain a context is left with no certificate at all. `check_time=False`
    skips the dates of the server's chain, and nothing else: for a device whose clock has not been set since boot.

    Raises: BadConfig when the CA file is unreadable or holds no certificate; StoreDamaged when the certificate or key
    is unreadable, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED and check_hostname are its defaults
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = newest
    if not check_time:
        context.verify_flags |= _NO_CHECK_TIME
    try:
        context.load_verify_locations(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"The CA file {ca_file} cannot be used: {error}.") from error
    if certificate is not None:
        chain_file, key_file = certificate
        try:
            # The password callback is never asked for a plain key; without it an encrypted one would prompt on the tty.
            context.load_cert_chain(str(chain_file), str(key_file), password="")
        except (OSError, ssl.SSLError) as error:
            raise StoreDamaged(f"The certificate {chain_file} and its key cannot be used: {error}.") from error
    return context


def is_refusal(error: ssl.SSLError) -> bool:
    """Whether the server ended the handshake because of our certificate, or the lack of one, by a TLS alert."""
    reason = (error.reason or "").upper()
    return "ALERT" in reason and any(
        word in reason
        for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")  # RFC 8446, 6.2
    )
