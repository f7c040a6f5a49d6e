"""What a client shows of itself, turned into the right by which it asks for a first certificate.

One finder a path, tried in the order of FINDERS: the first that finds something decides, and what it refuses no other
is asked about. To add a path: its Grant in `fleet.domain.grants`, and its finder here or in a file of its own.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from weakref import WeakKeyDictionary

from fleet.domain.approval import ApprovalRequest, request_id
from fleet.domain.credential import Station, Token
from fleet.domain.device import DeviceId, Model
from fleet.domain.errors import Refused, Unauthenticated
from fleet.domain.grants import ApprovalGrant, ClaimGrant, IdevidGrant, ManifestGrant, StationGrant, TokenGrant
from fleet.domain.idevid import Anchor, MakerCertificate, MakerReader
from fleet.domain.issuance_context import EnrollmentRequest, Grant
from fleet.domain.manifest import ManifestEntry
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.peer import Peer
from fleet.domain.ports import EnrollmentFacts, HolderFacts, Registry
from fleet.services.approvals import facts_of
from fleet.services.identity import identify
from fleet.services.refusals import network_of

TOKEN_TEXT_SIZE_MAX = 256  # ours have 60 characters; nothing longer is worth hashing

_NOBODYS_SECRET = bytes(32)  # no text is known to hash to it


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """What HTTP Basic carries: the device id, or nothing, as user name; a token's text as password."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came with a request for a first certificate, and what the registry knows of it."""

    registry: Registry
    peer: Peer
    credentials: BasicCredentials | None
    request: EnrollmentRequest
    holder: DeviceId
    """The device that the request names."""
    label: str | None
    """The label in the path; it names a model or a tenant."""
    facts: EnrollmentFacts
    presented: HolderFacts | None
    """Whose the certificate is that was presented, by live state; None when there was none."""
    now: datetime
    maker: tuple[Anchor, MakerCertificate] | None = None
    """The maker's certificate that was presented in place of one of ours, and the CA that it ends at."""


Finder = Callable[[Evidence], Awaitable[Grant | None]]


async def evidence_of(
    registry: Registry,
    peer: Peer,
    credentials: BasicCredentials | None,
    request: EnrollmentRequest,
    holder: DeviceId,
    label: str | None,
    now: datetime,
    read_maker: MakerReader | None = None,
) -> Evidence:
    """Everything that the finders look at. A certificate must be good, whatever comes beside it: ours, or with
    `read_maker` that of a maker whose CA is believed.

    Raises: Unauthenticated, Refused, as `identify` does. Unavailable.
    """
    presented, maker = None, None
    if peer.fingerprint is not None:
        try:
            presented = await identify(registry, peer, now, opens_to_claims=True)
        except Unauthenticated:
            maker = await _maker_of(registry, peer, read_maker)
            if maker is None:
                raise
    token_id, _ = token_parts(credentials.password) if credentials else (None, "")
    facts = await registry.enrollment_facts(holder, token_id, request.key_sha256)
    return Evidence(registry, peer, credentials, request, holder, label, facts, presented, now, maker)


async def grant_of(evidence: Evidence) -> Grant | None:
    """The right that `evidence` amounts to; None when it is a right to nothing.

    Raises: Unauthenticated, Refused, Unavailable: what was shown is no good.
    """
    for find in FINDERS:
        grant = await find(evidence)
        if grant is not None:
            return grant
    return None


async def by_token(evidence: Evidence) -> Grant | None:
    """A token, when there is one, is the right that is used."""
    if evidence.credentials is None:
        return None
    _, secret = token_parts(evidence.credentials.password)
    token = verified_token(evidence.facts.token, secret)
    listed = await _listed(evidence) if token.device_id is None else None
    return TokenGrant(token, evidence.credentials.username, listed)


async def by_station(evidence: Evidence) -> Grant | None:
    shown = evidence.presented
    if shown is None or shown.station is None:
        return None
    named = await _model_named(evidence, shown.station)
    return StationGrant(shown.station, named, shown.credential)


async def by_claim(evidence: Evidence) -> Grant | None:
    shown = evidence.presented
    if shown is None or shown.claim is None:
        return None
    return ClaimGrant(shown.claim, shown.credential, await _listed(evidence))


async def by_idevid(evidence: Evidence) -> Grant | None:
    """A maker's certificate, with the one device on the manifest that has its serial."""
    if evidence.maker is None:
        return None
    anchor, certificate = evidence.maker
    models = (evidence.label,) if evidence.label in anchor.models else anchor.models
    entries = await _entries(evidence.registry, models, certificate)
    if len(entries) > 1:
        raise Refused("idevid-ambiguous", "The maker's certificate could be that of several devices on the manifest.")
    bindings = await evidence.registry.idevid_bindings(certificate.key_sha256, evidence.holder)
    model = models[0] if len(models) == 1 else ""
    return IdevidGrant(anchor, certificate, entries[0] if entries else None, tuple(bindings), model)


async def _entries(registry: Registry, models: Sequence[str], certificate: MakerCertificate) -> list[ManifestEntry]:
    serials = [(model, serial) for model in models for serial in certificate.serials]
    return list((await registry.manifest_facts((), serials, ())).entries)


async def _maker_of(
    registry: Registry, peer: Peer, read_maker: MakerReader | None
) -> tuple[Anchor, MakerCertificate] | None:
    """By the live registry: a CA that was removed since the connection began is believed no more.

    Raises: Invalid (`bad-idevid`).
    """
    if read_maker is None or peer.certificate_der is None or len(peer.chain_der) < 2:
        return None
    for anchor in await registry.anchors():
        if anchor.der == peer.chain_der[-1]:
            return anchor, read_maker(peer.certificate_der)
    return None


async def _listed(evidence: Evidence) -> ManifestEntry | None:
    """What the manifest says of the device that the request names; whatever it lists is registered."""
    if evidence.facts.device is None:
        return None
    facts = await evidence.registry.manifest_facts((evidence.holder,), (), ())
    return next(iter(facts.entries), None)


async def by_manifest(evidence: Evidence) -> Grant | None:
    """Whoever shows nothing may be known by the key of its request: the CSR's signature is the proof of it."""
    if evidence.credentials is not None or evidence.presented is not None:
        return None
    facts = await evidence.registry.manifest_facts((), (), (evidence.request.key_sha256,))
    return ManifestGrant(facts.entries[0]) if facts.entries else None


async def by_approval(evidence: Evidence) -> Grant | None:
    """Whoever shows nothing may ask for an operator's word, at a model that lets it: the device's own, or the one that
    the label names for a new device.
    """
    e = evidence
    if e.credentials is not None or e.presented is not None or e.maker is not None:
        return None
    model = e.facts.model if e.facts.device is not None else await e.registry.model(e.label) if e.label else None
    if model is None or AdmissionPath.APPROVAL not in model.rules.admission.paths:
        return None
    id_ = request_id(e.holder, e.request.key_sha256)
    known = await e.registry.request(id_)
    if known is not None and known.expires_at > e.now:
        return ApprovalGrant(known, listed=await _listed(evidence))
    asked = ApprovalRequest(
        id=id_,
        device_id=e.holder,
        model=model.name,
        key_sha256=e.request.key_sha256,
        key_type=e.request.key_type,
        facts=facts_of(e.request),
        address=e.peer.address,
        network=network_of(e.peer.address),
        first_seen=e.now,
        last_seen=e.now,
        expires_at=e.now,  # put off when it begins to wait
    )
    return ApprovalGrant(asked, is_new=True, listed=await _listed(evidence))


FINDERS: tuple[Finder, ...] = (by_token, by_station, by_claim, by_idevid, by_manifest, by_approval)

OPEN_TO_STRANGERS = frozenset({AdmissionPath.APPROVAL, AdmissionPath.MANIFEST})
"""Paths on which a client shows neither a token nor a certificate."""


_Lets = tuple[datetime, frozenset[str]]
_LETS: WeakKeyDictionary[Registry, _Lets] = WeakKeyDictionary()
LETS_SECONDS = 1  # anybody can have all models looked through, as often as a link carries it


async def _model_named(evidence: Evidence, station: Station) -> str:
    """What the label says: a model, or under a tenant's label the station's only model of this tenant. "" when it says
    nothing, or several.
    """
    label = evidence.label
    if label is None or label in station.models:
        return label or ""
    own = [await evidence.registry.model(name) for name in station.models]
    found = [each.name for each in own if each is not None and each.rules.tenant == label]
    if not found:
        return label  # nobody's, or a model that is not the station's: the checks say which
    return found[0] if len(found) == 1 else ""


async def strangers_may_ask(registry: Registry, label: str | None, now: datetime) -> bool:
    """Whether reading the request of a client that shows nothing is worth the while: the model that `label` names lets
    such in; under a tenant's label, some model of the tenant does, and without a label, some model of all, or did a
    second ago.
    """
    named = await registry.model(label) if label is not None else None
    if named is not None:
        return _lets_strangers(named)
    known = _LETS.get(registry)
    if known is None or abs(now - known[0]) >= timedelta(seconds=LETS_SECONDS):
        tenants = frozenset(each.rules.tenant for each in await registry.models() if _lets_strangers(each))
        known = _LETS[registry] = (now, tenants)
    return label in known[1] if label is not None else bool(known[1])


def _lets_strangers(model: Model) -> bool:
    return bool(OPEN_TO_STRANGERS.intersection(model.rules.admission.paths))


def token_parts(password: str) -> tuple[str, str]:
    """Token id and secret. What is malformed comes out as an id that nobody has: it must cost and say the same."""
    if len(password) > TOKEN_TEXT_SIZE_MAX:
        return "", ""
    token_id, _, secret = password.partition(".")
    return token_id, secret


def verified_token(token: Token | None, secret: str) -> Token:
    """`token`, when `secret` is its secret. An unknown token takes as long, and is told the same, as a wrong secret."""
    expected = token.secret_sha256 if token is not None else _NOBODYS_SECRET
    right = hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), expected)
    if token is None or not right:
        raise Unauthenticated("bad-token", "The token is not valid.", "Check it, or ask for a new one.")
    return token
