"""Authentication of a request for a first certificate: the credentials that a client presented become a Grant.

There is one authenticator for each admission path, tried in the order of AUTHENTICATORS: the first that finds its
credential decides, and what it refuses no other is asked about. To add a path: its Grant in `fleet.domain.grants`, and
its authenticator here or in a module of its own.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from weakref import WeakKeyDictionary

from msgspec import Struct

from fleet.domain.approval import ApprovalRequest, request_id
from fleet.domain.credential import Station, Token
from fleet.domain.device import OUT_OF_SERVICE, Model
from fleet.domain.errors import Refused, Unauthenticated
from fleet.domain.grants import ApprovalGrant, ClaimGrant, IdevidGrant, ManifestGrant, StationGrant, TokenGrant
from fleet.domain.idevid import Anchor, IdevidCertificate, IdevidReader
from fleet.domain.issuance_context import EnrollmentRequest, Grant, Names
from fleet.domain.manifest import ManifestEntry
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.peer import Peer, block_of, network_of, region_of
from fleet.domain.ports import EnrollmentFacts, HolderFacts, Registry
from fleet.domain.recent import Recent
from fleet.services.approvals import facts_of
from fleet.services.identity import identified

TOKEN_TEXT_SIZE_MAX = 256  # ours have 60 characters; nothing longer is worth hashing

_NO_SECRET = bytes(32)  # no text is known to hash to it


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """HTTP Basic credentials: the device id or nothing as user name, a token as password."""

    username: str
    password: str = field(repr=False)


class Submission(Struct, frozen=True):
    """One certificate request, parsed."""

    request: EnrollmentRequest
    credentials: BasicCredentials | None = None
    label: str | None = None
    """The label in the path; it names a model or a tenant. Only a station that provisions several models needs it, and
    a new device without credentials.
    """
    current_names: Names | None = None
    """Subject and SAN of the certificate that the client presented, if it did."""
    waits_for_challenge: bool = False
    """Whether the client may have credentials that it sends only once it is asked for them."""


class Presented(Struct, frozen=True):
    """Everything that came with a request for a first certificate, and the registry's facts about it."""

    registry: Registry
    peer: Peer
    submission: Submission
    facts: EnrollmentFacts
    holder: HolderFacts | None
    """The holder of the certificate presented, by live state; None without one of ours."""
    now: datetime
    manufacturer: tuple[Anchor, IdevidCertificate] | None = None
    """A manufacturer's certificate that was presented instead, and its trust anchor."""


Authenticator = Callable[[Presented], Awaitable[Grant | None]]


async def present(
    registry: Registry, peer: Peer, submission: Submission, now: datetime, read_idevid: IdevidReader | None = None
) -> Presented:
    """The facts that the authenticators look at. A client certificate must be valid, whatever else was presented: ours,
    or with `read_idevid` one of a manufacturer whose CA is imported.

    Raises: Unauthenticated, Refused, as `identify` does. Unavailable.
    """
    credentials, request = submission.credentials, submission.request
    token_id = token_parts(credentials.password)[0] if credentials else None
    facts = await registry.enrollment_facts(
        request.device_id, token_id, request.key_sha256, certificate=peer.fingerprint
    )
    holder, manufacturer = None, None
    if peer.fingerprint is not None:
        try:
            holder = identified(registry, peer, facts.holder, now)
        except Unauthenticated:
            manufacturer = await _idevid_of(registry, peer, read_idevid)
            if manufacturer is None:
                raise
    return Presented(registry, peer, submission, facts, holder, now, manufacturer)


def no_credentials() -> Unauthenticated:
    return Unauthenticated(
        "no-credentials", "A token, a certificate that enrolls devices, or a key on the manifest is needed."
    )


async def authenticate(presented: Presented) -> Grant | None:
    """The grant that the credentials amount to; None when there are none.

    Raises: Unauthenticated, Refused, Unavailable: a credential is not valid.
    """
    for find in AUTHENTICATORS:
        grant = await find(presented)
        if grant is not None:
            return grant
    return None


async def by_token(presented: Presented) -> Grant | None:
    """A token takes precedence over a certificate."""
    credentials = presented.submission.credentials
    if credentials is None:
        return None
    token = verified_token(presented.facts.token, token_parts(credentials.password)[1])
    listed = await _listed(presented) if token.device_id is None else None
    return TokenGrant(token, credentials.username, listed)


async def by_station(presented: Presented) -> Grant | None:
    holder = presented.holder
    if holder is None or holder.station is None:
        return None
    return StationGrant(holder.station, await _model_named(presented, holder.station), holder.credential)


async def by_claim(presented: Presented) -> Grant | None:
    holder = presented.holder
    if holder is None or holder.claim is None:
        return None
    return ClaimGrant(holder.claim, holder.credential, await _listed(presented))


async def by_idevid(presented: Presented) -> Grant | None:
    """A manufacturer's certificate, with the one device on the manifest that has its serial."""
    if presented.manufacturer is None:
        return None
    anchor, certificate = presented.manufacturer
    label = presented.submission.label
    models = (label,) if label in anchor.models else anchor.models
    entries = await _entries(presented.registry, models, certificate)
    if len(entries) > 1:
        raise Refused("idevid-ambiguous", "The manufacturer's certificate matches several devices of the manifest.")
    device = presented.submission.request.device_id
    bindings = await presented.registry.idevid_bindings(certificate.key_sha256, device)
    model = models[0] if len(models) == 1 else ""
    return IdevidGrant(anchor, certificate, entries[0] if entries else None, tuple(bindings), model)


async def _entries(registry: Registry, models: Sequence[str], certificate: IdevidCertificate) -> list[ManifestEntry]:
    serials = [(model, serial) for model in models for serial in certificate.serials]
    entries = (await registry.manifest_facts((), serials, ())).entries
    if len(entries) > 1:  # a board may be registered again once its device is revoked or retired
        devices = [await registry.device(each.device_id) for each in entries]
        ended = {each.id for each in devices if each is not None and each.state in OUT_OF_SERVICE}
        entries = tuple(each for each in entries if each.device_id not in ended) or entries[-1:]
    # Of some from before letter case and spaces were ignored, the one that is written alike.
    return [each for each in entries if each.hardware_serial in certificate.serials] or list(entries)


async def _idevid_of(
    registry: Registry, peer: Peer, read_idevid: IdevidReader | None
) -> tuple[Anchor, IdevidCertificate] | None:
    """Judged by the live registry: a CA that was removed since the handshake is no longer trusted.

    Raises: Invalid (`bad-idevid`).
    """
    if read_idevid is None or peer.certificate_der is None or len(peer.chain_der) < 2:
        return None
    for anchor in await registry.anchors():
        if anchor.der == peer.chain_der[-1]:
            return anchor, read_idevid(peer.certificate_der)
    return None


async def _listed(presented: Presented) -> ManifestEntry | None:
    """The manifest's entry for the requested device; every listed device is registered."""
    if presented.facts.device is None:
        return None
    facts = await presented.registry.manifest_facts((presented.submission.request.device_id,), (), ())
    return next(iter(facts.entries), None)


async def by_manifest(presented: Presented) -> Grant | None:
    """Without other credentials, a listed key authenticates its device: the CSR's signature proves possession."""
    if presented.submission.credentials is not None or presented.holder is not None:
        return None
    model = presented.facts.model
    paths = model.rules.admission.paths if model is not None else ()
    if AdmissionPath.MANIFEST not in paths and AdmissionPath.APPROVAL in paths:
        return None  # its key is announced: it waits for approval, and gives way to no other
    facts = await presented.registry.manifest_facts((), (), (presented.submission.request.key_sha256,))
    return ManifestGrant(facts.entries[0]) if facts.entries else None


async def by_approval(presented: Presented) -> Grant | None:
    """An unauthenticated client may request approval, if the model allows it: the registered device's model, or the one
    that the label names for a new device.
    """
    submission, registry, now = presented.submission, presented.registry, presented.now
    if submission.credentials is not None or presented.holder is not None or presented.manufacturer is not None:
        return None
    if presented.facts.device is not None:
        model = presented.facts.model
    else:
        model = await registry.model(submission.label) if submission.label else None
    if model is None or AdmissionPath.APPROVAL not in model.rules.admission.paths:
        return None
    request, address = submission.request, presented.peer.address
    has_tokens = AdmissionPath.TOKEN in model.rules.admission.paths
    id_ = request_id(request.device_id, request.key_sha256)
    known = await registry.request(id_)
    if known is not None and known.expires_at > now:
        return ApprovalGrant(known, listed=await _listed(presented))
    if has_tokens and submission.waits_for_challenge and not _was_asked(registry, id_, now):
        raise no_credentials()
    new = ApprovalRequest(
        id=id_,
        device_id=request.device_id,
        model=model.name,
        key_sha256=request.key_sha256,
        key_type=request.key_type,
        facts=facts_of(request),
        address=address,
        network=network_of(address),
        block=block_of(address),
        region=region_of(address),
        first_seen=now,
        last_seen=now,
        expires_at=now,  # extended when it is queued
    )
    return ApprovalGrant(new, is_new=True, listed=await _listed(presented))


_ASKED: WeakKeyDictionary[Registry, Recent[str, datetime]] = WeakKeyDictionary()
ASKED_MAX = 4096
ASKED_LASTS = timedelta(hours=1)


def _was_asked(registry: Registry, id_: str, now: datetime) -> bool:
    """Whether the client of this request has been asked for credentials; it has been from now on, in this process."""
    asked = _ASKED.setdefault(registry, Recent(ASKED_MAX))
    at = asked.get(id_)
    asked.put(id_, now)
    return at is not None and abs(now - at) < ASKED_LASTS


AUTHENTICATORS: tuple[Authenticator, ...] = (by_token, by_station, by_claim, by_idevid, by_manifest, by_approval)

UNAUTHENTICATED_PATHS = frozenset({AdmissionPath.APPROVAL, AdmissionPath.MANIFEST})
"""Paths on which a client presents neither a token nor a certificate."""


_Cached = tuple[datetime, frozenset[str]]
_OPEN_TENANTS: WeakKeyDictionary[Registry, _Cached] = WeakKeyDictionary()
CACHE_SECONDS = 1  # anybody can make us read all models, as often as a link carries it


async def _model_named(presented: Presented, station: Station) -> str:
    """The model that the label names; under a tenant's label, the station's only model of that tenant. "" when that is
    no model, or several.
    """
    label = presented.submission.label
    if label is None or label in station.models:
        return label or ""
    own = [await presented.registry.model(name) for name in station.models]
    found = [each.name for each in own if each is not None and each.rules.tenant == label]
    if not found:
        return label  # unknown, or a model that is not the station's: the checks say which
    return found[0] if len(found) == 1 else ""


async def accepts_unauthenticated(registry: Registry, label: str | None, now: datetime) -> bool:
    """Whether the request of a client without credentials is worth reading: the model that `label` names has a path for
    it; under a tenant's label, some model of the tenant has; without a label, any model. Up to a second old.
    """
    named = await registry.model(label) if label is not None else None
    if named is not None:
        return _has_unauthenticated_path(named)
    known = _OPEN_TENANTS.get(registry)
    if known is None or abs(now - known[0]) >= timedelta(seconds=CACHE_SECONDS):
        tenants = frozenset(each.rules.tenant for each in await registry.models() if _has_unauthenticated_path(each))
        known = _OPEN_TENANTS[registry] = (now, tenants)
    return label in known[1] if label is not None else bool(known[1])


def _has_unauthenticated_path(model: Model) -> bool:
    return bool(UNAUTHENTICATED_PATHS.intersection(model.rules.admission.paths))


def token_parts(password: str) -> tuple[str, str]:
    """Token id and secret. Malformed text gives an id that no token has: it must cost and answer the same."""
    if len(password) > TOKEN_TEXT_SIZE_MAX:
        return "", ""
    token_id, _, secret = password.partition(".")
    return token_id, secret


def verified_token(token: Token | None, secret: str) -> Token:
    """`token`, if `secret` is its secret. An unknown token costs and answers the same as a wrong secret."""
    expected = token.secret_sha256 if token is not None else _NO_SECRET
    right = hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), expected)
    if token is None or not right:
        raise Unauthenticated("bad-token", "The token is not valid.", "Check it, or ask for a new one.")
    return token
