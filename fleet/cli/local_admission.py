"""Claims and makers' CAs at a home itself."""

from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.trust_anchor import read_maker_ca
from fleet.cli.desk import Held
from fleet.cli.home import OPERATOR, OpenHome, utc_now
from fleet.cli.issued import Issued
from fleet.domain.access import Act
from fleet.domain.claim import Claim
from fleet.domain.credential import CredentialKind
from fleet.domain.idevid import Anchor
from fleet.home.ca_listing import shown_authorities
from fleet.home.pki import authority_chain, operators_authority
from fleet.services import anchors, claims
from fleet.services.holders import demand_good_key
from fleet.services.revocation import checked_reason
from fleet.wire.csr import decode_csr


async def claim_of(fleet: OpenHome, name: str) -> tuple[Claim, list[Held]]:
    found = await claims.known_claim(fleet.registry, name)
    held = [c for c in await fleet.registry.credentials(name) if c.kind is CredentialKind.CLAIM]
    return found, [Held(c.serial, c.state, c.not_before, c.not_after, c.fingerprint) for c in held]


async def add_claim(
    fleet: OpenHome, name: str, model: str, quota: int, csr_der: bytes, lifetime: timedelta
) -> tuple[Claim, Issued]:
    csr, act = decode_csr(csr_der), Act(OPERATOR, utc_now())
    demand_good_key(csr.key_type)
    claim, credential = await claims.enroll_claim(
        fleet.registry, fleet.issuer(), name, model, quota, csr.spki_der, expires_at=act.now + lifetime, act=act
    )
    return claim, Issued((x509.load_der_x509_certificate(credential.der), authority_chain(fleet.home)[1]))


async def move_claim(fleet: OpenHome, verb: str, name: str, reason: str) -> None:
    await claims.MOVES[verb](fleet.registry, name, act=Act(OPERATOR, utc_now()), reason=reason)


async def add_anchor(fleet: OpenHome, name: str, models: tuple[str, ...], data: bytes) -> Anchor:
    act = Act(OPERATOR, utc_now())
    operators_authority(fleet.home, act.now)  # there from now on, and none of the makers'
    own = [each.certificate for each in shown_authorities(fleet.home)]
    found = read_maker_ca(data, own, act.now)
    return await anchors.add_anchor(fleet.registry, name, models, found.public_bytes(Encoding.DER), act=act)


async def remove_anchor(fleet: OpenHome, name: str, reason: str) -> None:
    await anchors.remove_anchor(fleet.registry, name, act=Act(OPERATOR, utc_now()), reason=checked_reason(reason))
