"""Issuing CAs of a served home, reloaded on use when they have changed on disk.

A new tenant or a CA rollover takes effect at the next request and connection of every process on this machine. If the
files cannot be read, the CAs loaded before stay in use.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.issuer import FLEET, LocalIssuer, own_key
from fleet.ca.keys import load_key
from fleet.config.logs import FailureLog, log_event
from fleet.config.settings import Settings
from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import FleetError, Refused, Unavailable
from fleet.domain.name_templates import dns_name
from fleet.home.authorities import Authorities, read_authorities
from fleet.home.ca_store import CERTIFICATE, KEY, Authority
from fleet.home.constrained_names import demand_names, is_constrained
from fleet.home.layout import Home, settings_of
from fleet.home.publication import publication_of
from fleet.wire.spki import spki_of

log = logging.getLogger("fleet")

FRESH_NS = 100_000_000
"""A folder changed this recently may change again within the same tick of the file system's clock."""

TENANTS = frozenset({CredentialKind.DEVICE})
"""Kinds of holder that a tenant's CA certifies: devices. Stations and the server are the fleet's own."""

LOOK_EVERY_NS = 20_000_000
"""Connections and enrollments of the same 20 ms share one look at the disk: in a storm each would cost six calls."""

_Built = TypeVar("_Built")
_Stamp = tuple[tuple[int, int], ...]
_TROUBLE = (FleetError, OSError, ValueError)


def derived(authorities: Callable[[], Authorities], build: Callable[[Authorities], _Built]) -> Callable[[], _Built]:
    """What `build` makes of `authorities`, made anew when these are others."""
    made: list[tuple[Authorities, _Built]] = []

    def current() -> _Built:
        present = authorities()
        if not made or made[0][0] is not present:
            made[:] = [(present, build(present))]
        return made[0][1]

    return current


class LiveAuthorities:
    """Every issuing CA of `home`; implements `fleet.domain.ports.Issuer` and `Tenants`.

    Raises: OSError, ValueError, FleetError: the fleet's own CA cannot be read, or cannot sign.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._settings = home, settings_of(home)
        self.changed: Callable[[], None] = lambda: None
        """Called when the CAs or the server certificate have changed."""
        self._failures = FailureLog(log, "ca.read")
        self._watched = _watched(home, ())
        self._stamp: _Stamp | None = None
        self._looked_at = 0
        self._may_sign_at = 0
        """By the monotonic clock: when every process of this machine trusts the CAs."""
        self._read(self._seen())

    @property
    def current(self) -> Authorities:
        self._look()
        return self._current

    @property
    def recent(self) -> Authorities:
        """As `current`, at most LOOK_EVERY_NS old."""
        self._look_if_due()
        return self._current

    def _look(self) -> None:
        """Reload the CAs if they have changed. Costs some microseconds if they have not."""
        stamp = self._seen()
        if stamp == self._stamp:
            return
        before = self._current, self._server
        try:
            self._read(stamp)
        except _TROUBLE as error:
            self._failures.failed(outcome="failed", kept="old", reason=error)
            return
        if (self._current, self._server) != before:
            self._may_sign_at = time.monotonic_ns() + LOOK_EVERY_NS
            log_event(log, logging.INFO, "ca.read", outcome="ok", tenants=len(self._current.tenants))
            self.changed()

    def _look_if_due(self) -> None:
        """As `_look`, but at most once in LOOK_EVERY_NS: for what happens thousands of times a second."""
        now = time.monotonic_ns()
        if now - self._looked_at >= LOOK_EVERY_NS:
            self._looked_at = now
            self._look()

    def reread(self) -> None:
        """Reload unconditionally."""
        self._stamp = None
        self._look()

    def issue(self, permit: IssuePermit, now: datetime) -> Credential:
        self._look_if_due()
        if permit.spki_der in self._own_keys:
            raise own_key()
        if permit.profile.service:
            self._must_not_be_ours(permit)
        if (left := self._may_sign_at - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)  # once a change of the CAs: a process that has just looked knows no new one before
        made = self._issuer_of(permit.tenant).issue(permit, now)
        constrained = self._constrained.get(permit.tenant)
        if constrained is not None:
            demand_names(constrained, x509.load_der_x509_certificate(made.der), f"{permit.kind} {permit.holder}")
        return made

    def _must_not_be_ours(self, permit: IssuePermit) -> None:
        """Devices would take such a server for the fleet's. Raises: Refused (`name-impossible`). Invalid."""
        name = dns_name(permit.profile.dns_name, permit.holder, permit.model)
        if name in {host.lower() for host in settings_of(self._home).hosts}:
            raise Refused("name-impossible", f"{name} is a name of the fleet's own server.", "Give it another id.")

    def names(self) -> frozenset[str]:
        return frozenset((*self.current.tenants, *self.current.broken))

    def chain_der(self, tenant: str) -> tuple[bytes, ...] | None:
        found = self.current.of(tenant)
        if found is None:
            return None
        chain = list(found.chain)
        own = self._current.own
        if found.root != own.root:  # so that a client can verify the server, and follow a rollover of its root
            chain += [own.root, *(link for each in own.former_roots for link in each.links)]
        return tuple(each.public_bytes(Encoding.DER) for each in chain)

    def trust_update(self, tenant: str) -> bytes:
        return (self.current.of(tenant) or self.current.own).trust_update

    def _issuer_of(self, tenant: str) -> LocalIssuer:
        """Raises: Refused (`no-such-tenant`). Unavailable: `tenant-damaged`, `ca-cannot-sign`."""
        if tenant in self._current.broken:
            raise Unavailable("tenant-damaged", f"The CA of tenant {tenant} cannot be read here.", "See the log.")
        found = self._signers.get(tenant)
        if isinstance(found, Exception):
            raise Unavailable("ca-cannot-sign", f"The CA of tenant {tenant} cannot sign here.", "See the log.")
        if found is None:
            raise Refused(
                "no-such-tenant",
                f"There is no issuing CA for tenant {tenant} here.",
                f"Make it, in the fleet's home: fleet tenant add {tenant}",
            )
        return found

    def _read(self, stamp: _Stamp) -> None:
        current = read_authorities(self._home, wait=False)
        signers: dict[str, LocalIssuer | Exception] = {"": _signer(current.own, self._settings)}
        for name, authority in current.tenants.items():
            try:
                signers[name] = _signer(authority, self._settings)
            except _TROUBLE as error:
                signers[name] = error
        self._current, self._signers, self._server = current, signers, stamp[0]
        self._own_keys = _own_keys(self._home, current)
        self._constrained = {each.tenant: each for each in current.all if is_constrained(each)}
        now = time.time_ns()  # the file system's clock, not the injected one
        is_fresh = any(abs(now - changed) < FRESH_NS for changed, _ in stamp)
        self._stamp = None if is_fresh else stamp
        broken = {**current.broken, **{n: str(e) for n, e in signers.items() if isinstance(e, Exception)}}
        self._watched = _watched(self._home, broken)
        if broken:
            self._failures.failed(outcome="damaged", **broken)
        else:
            self._failures.succeeded()

    def _seen(self) -> _Stamp:
        """Change times of the folders read, including damaged ones."""
        return tuple(_changed(path) for path in self._watched)


def _watched(home: Home, troubled: Iterable[str]) -> tuple[str, ...]:
    # As str: creating a Path takes longer than the stat call.
    parts = (home.tenants / name / part for name in troubled for part in ("", CERTIFICATE, KEY))
    return tuple(map(str, (home.server_chain, home.ca, home.tenants, home.server_chain.parent, *parts)))


def _changed(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return 0, 0
    return found.st_ctime_ns, found.st_ino  # ctime, which `cp -p` and `touch -d` cannot set back


def _own_keys(home: Home, authorities: Authorities) -> frozenset[bytes]:
    """SubjectPublicKeyInfo of every CA of the home, of its server, and of what signs audit, webhooks and OCSP."""
    certificates = [c for a in authorities.all for c in (*a.chain, *a.issuers)]
    for file in (home.server_chain, home.operators_certificate):
        with suppress(OSError, ValueError):  # away, or damaged: others report it
            certificates += x509.load_pem_x509_certificates(read_small(file, CERTIFICATES_SIZE_MAX))
    keys = set()
    for certificate in certificates:
        with suppress(ValueError, UnsupportedAlgorithm):  # an odd key of a corporate CA
            keys.add(spki_of(certificate.public_key()))
    for file in (home.audit_key, home.webhook_key, home.ocsp_key):
        with suppress(*_TROUBLE):
            keys.add(spki_of(load_key(file).public_key()))
    return frozenset(keys)


def _signer(authority: Authority, settings: Settings) -> LocalIssuer:
    kinds, publication = TENANTS if authority.tenant else FLEET, publication_of(settings, authority.tenant)
    return LocalIssuer(authority.issuing, load_key(authority.key_file), kinds, publication)


def client_anchors(authorities: Authorities) -> tuple[list[x509.Certificate], dict[bytes, str]]:
    """Client trust anchors, and the DER of each issuing CA with its tenant.

    A tenant's own root is not among them: its certificates chain to the tenant's issuing CA.
    """
    tenants = {c.public_bytes(Encoding.DER): a.tenant for a in authorities.all for c in a.issuers}
    return [authorities.own.root, *(c for a in authorities.all for c in a.issuers)], tenants
