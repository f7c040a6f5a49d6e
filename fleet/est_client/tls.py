"""TLS client contexts: a fresh one for each connection, the server always verified. Standard library only."""

import ssl
from pathlib import Path

from fleet.est_client.errors import BadConfig, BadCredentials

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the ssl module does not name.
_NO_CHECK_TIME = 0x200000


def client_context(
    ca_file: Path,
    certificate: tuple[Path, Path] | None = None,
    *,
    check_time: bool = True,
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> ssl.SSLContext:
    """A context that trusts `ca_file` (PEM, DER or PKCS#7) alone, checks the host name, and presents `certificate` (PEM
    chain, PEM key).

    Always a new one: after a failed load_cert_chain a context has no certificate at all. `check_time=False` skips the
    dates of the server's chain and nothing else: for a device whose clock has not been set since boot.

    Raises: BadConfig if the CA file is unreadable or holds no certificate; BadCredentials if the certificate or key is
    unreadable, or they do not match, or OpenSSL has lost the provider that has the key.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED and check_hostname are its defaults
    except ssl.SSLError as error:  # a provider of OpenSSL that is gone
        raise BadCredentials(f"TLS cannot be used: {_reason(error)}.") from error
    context.hostname_checks_common_name = False  # RFC 9525, 6.3: the subjectAltName alone names a server
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = newest
    if not check_time:
        context.verify_flags |= _NO_CHECK_TIME
    try:
        context.load_verify_locations(cadata=_pem(_read(ca_file)))
    except OSError as error:
        raise BadConfig(f"The CA file {ca_file} cannot be used: {_reason(error)}.") from error
    except ValueError as error:
        raise BadConfig(f"The CA file {ca_file} cannot be used: it holds no PEM certificate.") from error
    if certificate is not None:
        chain_file, key_file = certificate
        try:
            # An empty password: without one, an encrypted key would prompt on the terminal.
            for file in certificate:
                _read(file)  # OpenSSL would read one without an end, or wait for a pipe
            context.load_cert_chain(str(chain_file), str(key_file), password="")
        except (OSError, ssl.SSLError) as error:
            raise BadCredentials(
                f"The certificate {chain_file} and its key cannot be used: {_reason(error)}."
            ) from error
    return context


def is_refusal(error: ssl.SSLError) -> bool:
    """Whether the server ended the handshake, by a TLS alert, because of our certificate or the lack of one."""
    return is_refusal_text(error.reason or "")


def is_refusal_text(text: str) -> bool:
    """Likewise, of an error that is known by its text alone."""
    upper = text.upper()
    return "ALERT" in upper and any(
        word in upper
        for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")  # RFC 8446, 6.2
    )


_REASONS = {
    "NO_CERTIFICATE_OR_CRL_FOUND": "it holds no PEM certificate",
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
}


def _read(file: Path) -> bytes:
    from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small  # as in _pem

    return read_small(file, CERTIFICATES_SIZE_MAX)


def _pem(data: bytes) -> str:
    from fleet.wire.ca_file import ca_pem  # at import, this module needs the standard library alone
    from fleet.wire.errors import WireError

    try:
        return ca_pem(data)
    except WireError as error:
        raise ValueError(str(error)) from error


def _reason(error: OSError) -> str:
    """A sentence instead of the library's text, which names its own source file and line."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    return _REASONS.get(error.reason or "", "it is not unencrypted PEM")
