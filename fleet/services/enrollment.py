"""First certificates and renewals: read the facts, ask the domain, sign, commit; only then does a certificate leave.

    enroll      by a one-time token, or by a factory station's certificate
    reenroll    by the device's own current certificate, and by nothing else

A request that comes again because the answer was lost gets the certificate it has earned already, never a second
one. When somebody else changed the facts between our look and our commit, we look again, and the checks name the
reason. Every refusal is written to the audit before it is told.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from fleet.domain.application import Application, EnrollmentRequest, Grant, Names, earned_before
from fleet.domain.changes import (
    AddCredential,
    AddDevice,
    AuditEntry,
    Change,
    Event,
    EventKind,
    MoveDevice,
    Write,
)
from fleet.domain.credential import USABLE, Credential, Station, Token
from fleet.domain.device import DeviceId, DeviceState, Model, device_id
from fleet.domain.enrollment import new_device, permit_enrollment
from fleet.domain.errors import Conflict, FleetError, Refused, Unauthenticated, Unavailable
from fleet.domain.grants import RenewalGrant, StationGrant, TokenGrant
from fleet.domain.labels import leads_to
from fleet.domain.peer import Peer
from fleet.domain.ports import EnrollmentFacts, Issuer, Registry
from fleet.services.identity import NOBODY, identify, shown_by
from fleet.services.refusals import refusals_of

TOKEN_TEXT_SIZE_MAX = 256  # ours have 60 characters; nothing longer is worth hashing
LOOKS_MAX = 4  # each further look means that somebody else's commit came between

_NOBODYS_SECRET = bytes(32)  # no text is known to hash to it


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """What HTTP Basic carries: the device id, or nothing, as user name; a token's text as password."""

    username: str
    password: str = field(repr=False)


async def enroll(
    registry: Registry,
    issuer: Issuer,
    peer: Peer,
    credentials: BasicCredentials | None,
    request: EnrollmentRequest,
    label: str | None,
    now: datetime,
) -> Credential:
    """A first certificate for the device that `request` names; durable when this returns.

    `label` names the model or its tenant, and is needed only from a station that provisions several models and for a
    device that is new.

    Raises: Unauthenticated, Invalid, Refused, Unavailable.
    """
    attempt = _Attempt(registry, issuer, peer, request, label, now, action="device.enroll")
    return await attempt.run(lambda: attempt.first(credentials))


async def reenroll(
    registry: Registry,
    issuer: Issuer,
    peer: Peer,
    request: EnrollmentRequest,
    label: str | None,
    current_names: Names,
    now: datetime,
) -> Credential:
    """The next certificate of the device whose current one `peer` presented; durable when this returns.

    `current_names` are the names in that current certificate.

    Raises: Unauthenticated, Invalid, Refused, Unavailable.
    """
    attempt = _Attempt(registry, issuer, peer, request, label, now, action="device.reenroll")
    return await attempt.run(lambda: attempt.renewal(current_names))


@dataclass(slots=True)
class _Attempt:
    """One request on its way, and what the audit will say of it."""

    registry: Registry
    issuer: Issuer
    peer: Peer
    request: EnrollmentRequest
    label: str | None
    now: datetime
    action: str
    actor: str = NOBODY
    subject: str = "device ?"

    async def run(self, apply: Callable[[], Awaitable[Application]]) -> Credential:
        try:
            for _ in range(LOOKS_MAX):
                application = await apply()
                try:
                    return await self.settle(application)
                except Conflict:
                    continue  # a token spent, a device suspended: the next look shows which
            raise Unavailable("busy", "Others keep changing this device or token; nothing was done.", "Try again.")
        except Unavailable:
            raise  # the registry could not write this down either
        except FleetError as refusal:
            await self.record(refusal)
            raise

    async def record(self, refusal: FleetError) -> None:
        """The refusal stands, row written or not. Who can be refused at no cost fills one row a minute."""
        try:
            detail: dict[str, str] = {}
            cheap = self.actor == NOBODY  # refused before we knew who asks
            if cheap:
                self.actor, detail = await shown_by(self.registry, self.peer)  # its certificate may still tell
            elif self.actor.startswith("token "):
                cheap = True  # a token that has ended is still known
            entry = self.entry(refusal.code, **detail)
            row = refusals_of(self.registry).row(entry) if cheap else entry
            if row is not None:
                await self.registry.commit(Change(row))
        except Unavailable as error:
            refusal.add_note(f"The audit row could not be written: {error.message}")

    async def first(self, credentials: BasicCredentials | None) -> Application:
        """The facts of a first enrollment.

        A token, when there is one, is the right that is used. A certificate beside it must be good all the same, and
        when it is a device's, that of the very device.
        """
        holder = self.holder()
        presented = await identify(self.registry, self.peer, self.now) if self.peer.fingerprint else None
        token_id, secret = _parts(credentials.password) if credentials else (None, "")
        facts = await self.registry.enrollment_facts(holder, token_id, self.request.key_sha256)
        grant: Grant
        if credentials is not None:
            grant = TokenGrant(_verified(facts.token, secret), credentials.username)
            self.actor = str(grant)
            if presented is not None and presented.device is not None and presented.device.id != holder:
                raise Refused("not-your-identity", "The certificate presented belongs to another device.")
        elif presented is None:
            raise Unauthenticated("no-credentials", "A token or a station's certificate is needed.")
        elif presented.station is not None:
            grant = StationGrant(presented.station, self.label or "", presented.credential)
            self.actor = str(grant)
        else:
            self.actor = f"device {presented.credential.holder}"
            raise Refused("use-reenroll", "A device renews its own certificate by simplereenroll.")
        model = await self.model(facts, grant)
        return self.application(grant, facts, model)

    async def renewal(self, current_names: Names) -> Application:
        """The facts of a renewal."""
        holder = self.holder()
        presented = await identify(self.registry, self.peer, self.now)
        self.actor = f"{presented.credential.kind} {presented.credential.holder}"
        if presented.device is None or presented.model is None:
            raise Refused("not-a-device", "Only a device's own certificate is renewed by simplereenroll.")
        facts = await self.registry.enrollment_facts(presented.device.id, None, self.request.key_sha256)
        grant = RenewalGrant(presented.credential, current_names)
        if holder != presented.device.id:
            raise Refused("not-your-identity", "The certificate presented belongs to another device.")
        self.check_label(presented.model)
        return self.application(grant, facts, presented.model)

    def application(self, grant: Grant, facts: EnrollmentFacts, model: Model) -> Application:
        return Application(
            self.request, grant, facts.device, model, facts.credentials, self.now, key_uses=facts.key_uses
        )

    def holder(self) -> DeviceId:
        holder = device_id(self.request.names.common_name())
        self.subject = f"device {holder}"
        return holder

    async def model(self, facts: EnrollmentFacts, grant: Grant) -> Model:
        """The model of the device; for one that is new, the model that the grant brings."""
        model = facts.model
        if facts.device is None:
            match grant:
                case TokenGrant(token=token) if token.model is not None:
                    pass  # the facts hold the token's model
                case StationGrant(station=station) if self.label or len(station.models) == 1:
                    model = await self.station_model(station)
                case StationGrant():
                    raise _model_not_named()
                case _:
                    raise Refused("unknown-device", "The device is not in the registry.", "Add it: fleet device add.")
        if model is None:
            raise Refused("no-such-model", "There is no such model.")
        self.check_label(model)
        return model

    async def station_model(self, station: Station) -> Model | None:
        """The one that the label names; under a tenant's label, the station's only model of this tenant."""
        model = await self.registry.model(self.label or station.models[0])
        if model is not None:
            return model
        own = [await self.registry.model(name) for name in station.models]
        found = [each for each in own if each is not None and each.rules.tenant == self.label]
        if len(found) > 1:
            raise _model_not_named()
        return found[0] if found else None

    def check_label(self, model: Model) -> None:
        if self.label is not None and not leads_to(self.label, model.name, model.rules):
            raise Refused("not-your-model", "The label in the path is neither the device's model nor its tenant.")

    async def settle(self, application: Application) -> Credential:
        """Raises: Conflict: the facts have changed since they were read; nothing was done."""
        permit = permit_enrollment(application)
        earned = earned_before(application)
        if earned is not None:
            await self.registry.commit(Change(self.entry("ok", serial=earned.serial, repeated="yes")))
            return earned
        credential = self.issuer.issue(permit, self.now)
        await self.registry.commit(
            Change(
                audit=self.entry("ok", serial=credential.serial, grant=permit.grant),
                writes=_writes(application, credential),
                events=_events(application, credential),
            )
        )
        return credential

    def entry(self, outcome: str, **detail: str) -> AuditEntry:
        return AuditEntry(self.now, self.actor, self.action, self.subject, outcome, self.peer.address, detail)


def _model_not_named() -> Refused:
    return Refused(
        "model-not-named",
        "The station provisions several models, and the device is new.",
        "Name the model as the label: /.well-known/est/MODEL/simpleenroll.",
    )


def _parts(password: str) -> tuple[str, str]:
    """Token id and secret. What is malformed comes out as an id that nobody has: it must cost and say the same."""
    if len(password) > TOKEN_TEXT_SIZE_MAX:
        return "", ""
    token_id, _, secret = password.partition(".")
    return token_id, secret


def _verified(token: Token | None, secret: str) -> Token:
    """`token`, when `secret` is its secret. An unknown token takes as long, and is told the same, as a wrong secret."""
    expected = token.secret_sha256 if token is not None else _NOBODYS_SECRET
    right = hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), expected)
    if token is None or not right:
        raise Unauthenticated("bad-token", "The token is not valid.", "Check it, or ask for a new one.")
    return token


def _writes(application: Application, credential: Credential) -> tuple[Write, ...]:
    device = application.device
    writes: list[Write] = []
    if device is None:
        newcomer = new_device(application)
        writes.append(AddDevice(replace(newcomer, state=DeviceState.ACTIVE, expires_at=credential.not_after)))
    else:
        # From the state that was judged, and no other: whoever is suspended, or enrolled by another, since we looked,
        # has moved. That is why it is written for an active device too.
        states = frozenset({device.state})
        writes.append(MoveDevice(device.id, states, DeviceState.ACTIVE, expires_at=credential.not_after))
    writes += application.grant.writes(application)
    writes.append(AddCredential(credential))
    return tuple(writes)


def _events(application: Application, credential: Credential) -> tuple[Event, ...]:
    events = []
    if application.device is None or application.device.state is not DeviceState.ACTIVE:
        events.append(Event(EventKind.DEVICE_STATE, credential.holder, DeviceState.ACTIVE))
    replaced = application.grant.replaces
    if replaced is not None:
        # The presented certificate is now in use, and with that those before it have ended.
        for older in application.credentials:
            if older.fingerprint == replaced.fingerprint:
                break
            if older.state in USABLE:
                events.append(Event(EventKind.CREDENTIAL_ENDED, credential.holder, older.fingerprint.hex()))
        for unused in application.earned_unused():
            events.append(Event(EventKind.CREDENTIAL_ENDED, credential.holder, unused.fingerprint.hex()))
    events.append(Event(EventKind.CREDENTIAL_ISSUED, credential.holder, credential.fingerprint.hex()))
    return tuple(events)
