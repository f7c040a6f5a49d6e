"""How the gateway proves itself to an external broker, as the settings say: TLS, a client certificate, a password."""

import ssl
from dataclasses import replace

from fleet.config.addresses import BrokerKind, is_loopback
from fleet.config.secret_files import first_line, read_secret
from fleet.config.settings import Settings
from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.errors import Invalid
from fleet.domain.files_of_settings import certificate_file, password_file
from fleet.home.layout import Home
from fleet.servers.gateway.broker.upstream import UpstreamAccess
from fleet.wire.ca_file import ca_pem

SECRET_SIZE_MAX = 65_536  # a password of MQTT; a PEM key is smaller


def upstream_access(home: Home, settings: Settings) -> UpstreamAccess:
    """Raises: Invalid: `bad-settings`, `bad-password-file`, `bad-certificate-file`."""
    broker, certificate, key = settings.upstream, settings.upstream_certificate, settings.upstream_key
    is_tls = broker.kind is BrokerKind.TLS
    if not is_tls and (certificate or key or settings.upstream_ca != "system"):
        raise Invalid("bad-settings", "upstream: ca, certificate and key are for a broker with TLS, mqtts://HOST.")
    if bool(certificate) is not bool(key):
        raise Invalid("bad-settings", "upstream: certificate and key are set together, or neither.")
    tls = _context(home, settings) if is_tls else None
    access = UpstreamAccess(
        tls,
        sends_identity=settings.upstream_user_properties,
        sends_proxy_header=settings.upstream_proxy_v2,
        refuses_dots=settings.upstream_refuse_dots,
    )
    if (access.sends_identity or access.sends_proxy_header or access.refuses_dots) and broker.kind not in (
        BrokerKind.ADDRESS,
        BrokerKind.TLS,
        BrokerKind.SOCKET,
    ):
        raise Invalid("bad-settings", "upstream: user_properties, proxy_v2 and refuse_dots are for an external broker.")
    if not settings.upstream_password_file:
        return access
    is_here = broker.kind is BrokerKind.SOCKET or (broker.address is not None and is_loopback(broker.address.host))
    if not is_tls and not is_here:
        message = "upstream.password_file: the password would be sent in clear, or to a broker that needs none."
        raise Invalid("bad-settings", message, 'Set upstream = "mqtts://HOST", or a broker on this machine.')
    file = home.path / settings.upstream_password_file
    with password_file("upstream.password_file", file):
        return replace(access, password=first_line(file, SECRET_SIZE_MAX))


def _context(home: Home, settings: Settings) -> ssl.SSLContext:
    context = broker_context(home, settings.upstream_ca, "upstream.ca")
    if settings.upstream_key:
        key, chain = home.path / settings.upstream_key, home.path / settings.upstream_certificate
        with password_file("upstream.key", key):
            read_secret(key, SECRET_SIZE_MAX)
        advice = f"Both are PEM; upstream.key names the certificate's key, without a password: {key}"
        with certificate_file("upstream.certificate", chain, advice=advice):
            read_small(chain, CERTIFICATES_SIZE_MAX)  # OpenSSL would read a file without an end, or wait for a pipe
            context.load_cert_chain(chain, key, password=_no_password)
    return context


def broker_context(home: Home, ca: str, setting: str) -> ssl.SSLContext:
    """What a broker is verified with: the CAs of the file `ca`, or of the system. Raises: Invalid."""
    file = home.path / ca
    with certificate_file(setting, file):
        cas = None if ca == "system" else ca_pem(read_small(file, CERTIFICATES_SIZE_MAX))
        context = ssl.create_default_context(cadata=cas)
    context.hostname_checks_common_name = False  # RFC 9525, 6.3: the subjectAltName alone names a server
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # OpenSSL would ask on the terminal
