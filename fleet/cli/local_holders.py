"""Stations and operators at a home itself."""

from datetime import timedelta

from cryptography import x509

from fleet.cli.home import OPERATOR, OpenHome, utc_now
from fleet.cli.issued import Issued, Newest
from fleet.domain.access import Act, Operator, Role
from fleet.domain.credential import CredentialKind, Station
from fleet.domain.errors import NotFound
from fleet.home.pki import authority_chain, load_operators_issuer
from fleet.services import inventory, operators, revocation
from fleet.wire.csr import decode_csr


async def stations_of(fleet: OpenHome) -> list[tuple[Station, Newest | None]]:
    return [(each, await _newest(fleet, each.name, CredentialKind.STATION)) for each in await fleet.registry.stations()]


async def add_station(
    fleet: OpenHome, name: str, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta, quota: int
) -> Issued:
    spki, act = decode_csr(csr_der).spki_der, Act(OPERATOR, utc_now())
    made = await inventory.enroll_station(
        fleet.registry, fleet.issuer(), name, models, spki, lifetime=lifetime, quota=quota, act=act
    )
    return Issued((x509.load_der_x509_certificate(made.der), authority_chain(fleet.home)[1]))


async def revoke_station(fleet: OpenHome, name: str, reason: str) -> None:
    await revocation.revoke_station(fleet.registry, name, act=Act(OPERATOR, utc_now()), reason=reason)


async def operators_of(fleet: OpenHome) -> list[tuple[Operator, Newest | None]]:
    known = await fleet.registry.operators()
    return [(each, await _newest(fleet, each.name, CredentialKind.OPERATOR)) for each in known]


async def operator_of(fleet: OpenHome, name: str) -> tuple[Operator, Newest | None]:
    found = await fleet.registry.operator(name)
    if found is None:
        raise NotFound("no-such-operator", f"There is no operator {name[:80]!r}.", "See: fleet operator list")
    return found, await _newest(fleet, name, CredentialKind.OPERATOR)


async def add_operator(
    fleet: OpenHome, name: str, role: Role, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta
) -> Issued:
    spki, act = decode_csr(csr_der).spki_der, Act(OPERATOR, utc_now())
    issuer = load_operators_issuer(fleet.home, act.now)
    made = await operators.enroll_operator(fleet.registry, issuer, name, role, models, spki, lifetime=lifetime, act=act)
    return Issued((x509.load_der_x509_certificate(made.der), issuer.certificate))


async def revoke_operator(fleet: OpenHome, name: str, reason: str) -> None:
    await operators.revoke_operator(fleet.registry, name, act=Act(OPERATOR, utc_now()), reason=reason)


async def _newest(fleet: OpenHome, holder: str, kind: CredentialKind) -> Newest | None:
    found = [c for c in await fleet.registry.credentials(holder) if c.kind is kind]
    return Newest(found[-1].serial, found[-1].state, found[-1].not_after) if found else None
