"""OCSP responders of a served home: one for each issuing CA and the operators' CA, present and former.

Each process has the CAs delegate to the server's one key when a responder is first needed, and again before the
delegated certificate expires: nothing is written, so any number of processes and nodes do so without each other.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fleet.ca.authority import issue_responder_certificate
from fleet.ca.chain import has_signed
from fleet.ca.keys import load_key, load_or_make_key
from fleet.ca.ocsp import IssuerId, Responder, issuer_ids
from fleet.config.clock import Clock
from fleet.config.logs import FailureLog
from fleet.domain.ca_role import ISSUES_TO_DEVICES, CaRole
from fleet.domain.errors import FleetError
from fleet.home.authorities import Authorities
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home, certificate_in
from fleet.home.reloading_ca import derived
from fleet.wire.ocsp import SHA1, CertId, cert_id

log = logging.getLogger("fleet")


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


@dataclass(frozen=True, slots=True)
class _Known:
    keys: Mapping[IssuerId, tuple[x509.Certificate, Path]]
    """CAs and the files of their keys."""
    server: x509.Certificate | None
