"""What a served home gives relying parties: its CAs' certificates, OCSP responders, and the answer that is stapled.

OCSP responders are one for each issuing CA and the operators' CA, present and former. Each process has the CAs delegate
to the server's one key when a responder is first needed, and again before the delegated certificate expires: nothing is
written, so any number of processes and nodes do so without each other.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from fleet.ca.authority import issue_responder_certificate
from fleet.ca.chain import has_signed
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import load_key, load_or_make_key
from fleet.ca.ocsp import IssuerId, Responder, issuer_ids
from fleet.config.clock import Clock
from fleet.config.logs import FailureLog, log_event
from fleet.domain.backdating import BACKDATED_CA
from fleet.domain.ca_role import ISSUES_TO_DEVICES, CaRole
from fleet.domain.distribution import ca_name, ca_path
from fleet.domain.errors import FleetError
from fleet.domain.published_file import CA_CERTIFICATE, PublishedFile
from fleet.home.authorities import Authorities
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home, certificate_in
from fleet.home.reloading_ca import LiveAuthorities, derived
from fleet.wire.ocsp import SHA1, CertId, SingleResponse, Unrevoked, cert_id

log = logging.getLogger("fleet")

FRESH = timedelta(days=1)  # a CA's certificate changes when it is signed anew


class PublishedCertificates:
    """Certificates of every root and issuing CA of `home`, present and former, at their paths, for relying parties that
    build a chain (AIA; RFC 5280, 4.2.2.1).
    """

    def __init__(self, home: Home, authorities: LiveAuthorities) -> None:
        self._files = derived(lambda: authorities.recent, lambda current: certificate_files(home, current))

    async def find(self, path: str) -> PublishedFile | None:
        """The certificate at `path`."""
        return self._files().get(path)


def certificate_files(home: Home, authorities: Authorities) -> dict[str, PublishedFile]:
    """The certificate of every CA of `home`, by its path."""
    # Of two with one key, the one that is listed first is published.
    return dict(_published(ca.certificate) for ca in reversed(home_cas(home, authorities)))


def _published(certificate: x509.Certificate) -> tuple[str, PublishedFile]:
    identifier = identifier_of(certificate)
    file = PublishedFile(
        certificate.public_bytes(Encoding.DER), CA_CERTIFICATE, certificate.not_valid_before_utc, FRESH
    )
    return ca_path(ca_name(identifier)), file


class OcspResponders:
    """Finds the responder for a CA. `authorities`: the CAs of `home` at present."""

    def __init__(self, home: Home, authorities: Callable[[], Authorities], clock: Clock) -> None:
        self._home, self._authorities, self._clock = home, authorities, clock
        self._known = derived(authorities, self._read)
        self._made: dict[x509.Certificate, Responder] = {}
        self._failed: dict[x509.Certificate, FailureLog] = {}

    def find(self, issuer: IssuerId) -> Responder | None:
        """The responder of the CA that a request names so; None: it is no CA of ours, or its key is not here."""
        place = self._known().keys.get(issuer)
        return self._of(*place) if place is not None else None

    def fleet_responder(self) -> Responder | None:
        """That of the fleet's own issuing CA: it says that a certificate of a foreign CA is unknown."""
        own = self._authorities().own
        return self._of(own.issuing, own.key_file)

    def is_server(self, issuer: IssuerId, serial: int) -> bool:
        """Whether `serial` of `issuer` is the server's own certificate, which is in no registry."""
        known = self._known()
        server, place = known.server, known.keys.get(issuer)
        return (
            server is not None and server.serial_number == serial and place is not None and has_signed(place[0], server)
        )

    def responder_for(self, certificate: x509.Certificate) -> tuple[Responder, CertId] | None:
        """The responder for `certificate`, and its id; None: no CA here has issued it."""
        for (algorithm, name, key), (ca, key_file) in self._known().keys.items():
            # RFC 6960, 4.3: clients must know SHA-1, and need no other
            if algorithm == SHA1 and has_signed(ca, certificate) and (responder := self._of(ca, key_file)) is not None:
                return responder, cert_id((algorithm, name, key), certificate.serial_number)
        return None

    def _read(self, current: Authorities) -> "_Known":
        cas = home_cas(self._home, current, ISSUES_TO_DEVICES | {CaRole.OPERATORS})
        places = [(ca.certificate, ca.key_file) for ca in cas if ca.key_file is not None]
        self._failed = {}
        self._made = {ca: made for ca, made in self._made.items() if any(ca == place[0] for place in places)}
        server = certificate_in(self._home.server_chain) if self._home.server_chain.exists() else None
        return _Known({issuer: place for place in reversed(places) for issuer in issuer_ids(place[0])}, server)

    def _of(self, ca: x509.Certificate, key_file: Path) -> Responder | None:
        now = self._clock()
        made = self._made.get(ca)
        if made is not None and now < made.renew_at:
            return made
        try:
            made = self._made[ca] = self._delegated(ca, key_file, now)
        except (FleetError, OSError) as error:
            failures = self._failed.setdefault(ca, FailureLog(log, "ocsp"))
            failures.failed(outcome="not-delegated", ca=ca.subject.rfc4514_string(), reason=error)
            return made if made is not None and now < made.signs_until else None
        return made

    def _delegated(self, ca: x509.Certificate, key_file: Path, now: datetime) -> Responder:
        key = load_or_make_key(self._home.ocsp_key)
        return Responder(ca, issue_responder_certificate(ca, load_key(key_file), key.public_key(), now), key)


class _Known(Struct, frozen=True):
    keys: Mapping[IssuerId, tuple[x509.Certificate, Path]]
    """CAs and the files of their keys."""
    server: x509.Certificate | None


STAPLE_VALIDITY = timedelta(days=3)
RENEW_AFTER = timedelta(hours=12)


class ServerStaple:
    """Gives the answer about `certificate`, the server's own: good. One that is revoked is replaced, or it would not be
    served. Listeners staple it (RFC 6066, 8; RFC 8446, 4.4.2.1).
    """

    def __init__(self, certificate: x509.Certificate, responders: OcspResponders, clock: Clock) -> None:
        self._certificate, self._responders, self._clock = certificate, responders, clock
        self._answer = b""
        self._renew_at: datetime | None = None

    def __call__(self) -> bytes:
        """DER; b"": no CA here has issued it, or its key is away. Raises nothing: a handshake goes on without."""
        now = self._clock()
        if self._renew_at is None or now >= self._renew_at:
            self._renew_at = now + RENEW_AFTER
            try:
                self._answer = self._signed(now)
            except Exception as error:
                self._answer = b""
                log_event(log, logging.ERROR, "staple", outcome="not-made", reason=error)
        return self._answer

    def _signed(self, now: datetime) -> bytes:
        found = self._responders.responder_for(self._certificate)
        if found is None:
            return b""
        responder, certificate = found
        # Backdated as the certificate itself: some clients (GnuTLS) verify what is stapled, by clocks that are behind.
        return responder.sign(
            [SingleResponse(certificate, Unrevoked.GOOD, now - BACKDATED_CA, now + STAPLE_VALIDITY)], now
        )
