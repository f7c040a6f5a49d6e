"""Which statements each Write takes, in order, on every engine.

Each engine adds what differs: it writes the rows of an `ImportDevices` in bulk, and deletes a device's old tags before
the steps of a `TagDevice`.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, assert_never

from fleet.domain import writes as w
from fleet.domain.access import Operator
from fleet.domain.approval import DECIDED_FROM, UNSEEN, RequestState
from fleet.domain.audit_log import NODE_LEVELS
from fleet.domain.claim import Claim
from fleet.domain.credential import Station, Token
from fleet.domain.crl import CrlReason
from fleet.domain.device import Device, Model
from fleet.domain.distrust import Distrust
from fleet.domain.idempotency import Answer
from fleet.domain.idevid import Anchor
from fleet.storage import mapping
from fleet.storage import revoked_statements as listing
from fleet.storage import statements as sql
from fleet.storage.mapping import json_text, micros
from fleet.storage.statement import Statement
from fleet.storage.statements import filled

Step = tuple[Statement, tuple[Any, ...]]
"""A statement and its parameters."""

_NO_LIMIT = 2**62

INSERTS: dict[type[w.Inserted], tuple[Statement, mapping.Table[Any]]] = {
    Model: (sql.ADD_MODEL, mapping.MODEL),
    Device: (sql.ADD_DEVICE, mapping.DEVICE),
    Token: (sql.ADD_TOKEN, mapping.TOKEN),
    Claim: (sql.ADD_CLAIM, mapping.CLAIM),
    Station: (sql.ADD_STATION, mapping.STATION),
    Anchor: (sql.ADD_ANCHOR, mapping.ANCHOR),
    Distrust: (sql.ADD_DISTRUST, mapping.DISTRUST),
    Operator: (sql.ADD_OPERATOR, mapping.OPERATOR),
    Answer: (sql.ADD_ANSWER, mapping.ANSWER),
}
"""What an Insert takes, by the class of its value."""


def steps_of(write: w.SteppedWrite) -> Iterator[Step]:
    """Each statement that `write` takes, with its parameters, in order."""
    if isinstance(write, w.Insert):
        return _insert_steps(write.value)
    if isinstance(write, w.CredentialWrite):
        return _credential_steps(write)
    if isinstance(write, w.DeviceWrite):
        return _device_steps(write)
    if isinstance(write, w.AdmissionWrite):
        return _admission_steps(write)
    if isinstance(write, w.RequestWrite):
        return _request_steps(write)
    if isinstance(write, w.AdminWrite):
        return _admin_steps(write)
    return _retention_steps(write)


def _insert_steps(value: w.Inserted) -> Iterator[Step]:
    statement, table = INSERTS[type(value)]
    yield statement, table.row(value)
    if isinstance(value, Device):
        if value.hardware_serial:
            yield sql.SERIAL_IS_FREE, (value.hardware_serial, value.model, value.id)
        yield from ((sql.ADD_TAG, row) for row in mapping.tag_rows(value))


def _device_steps(write: w.DeviceWrite) -> Iterator[Step]:
    match write:
        case w.SetModel(model=model):
            yield sql.HAS_MODEL, (model.name,)
            yield sql.SET_MODEL, mapping.MODEL.row(model)
        case w.MoveDevice(device_id=id_, to=to, revision=revision):
            states = filled(write.allowed, sql.DEVICE_STATES)
            expires_at = _micros_or_none(write.expires_at)
            if revision is None:
                yield sql.MOVE_DEVICE, (id_, to.value, expires_at, *states)
            else:
                yield sql.DEVICE_MAY_MOVE, (id_, *states)
                yield sql.MOVE_DEVICE_REVISION, (id_, to.value, expires_at, revision)
            if write.noted is not None:
                yield sql.NOTE_STATE_CHANGE, mapping.STATE_CHANGE.row(write.noted)
        case w.TagDevice(device_id=id_, tags=tags, groups=groups, revision=revision):
            yield sql.HAS_DEVICE, (id_,)
            yield sql.TAG_DEVICE, (id_, json_text(tags), json_text(groups), revision)
            for key, value in (*tags, *(("", group) for group in groups)):
                yield sql.ADD_TAG, (key, value, id_)
        case _:
            assert_never(write)


def _credential_steps(write: w.CredentialWrite) -> Iterator[Step]:
    match write:
        case w.AddCredential(credential=credential):
            yield sql.KEY_IS_FREE, (credential.key_sha256, credential.holder, credential.kind.value)
            yield sql.ADD_CREDENTIAL, mapping.CREDENTIAL.row(credential)
        case w.MarkUsed(fingerprint=fingerprint):
            yield sql.CREDENTIAL_IS_USABLE, (fingerprint,)
            yield sql.USE_CREDENTIAL, (fingerprint,)
            yield sql.SUPERSEDE_OLDER, (fingerprint,)
        case w.EndUnused(kind=kind, holder=holder, grant=grant, newest=newest):
            if newest is None:
                yield sql.NONE_IS_UNUSED, (holder, kind, grant)
            else:
                yield sql.NEWEST_UNUSED_IS, (holder, kind, grant, newest)
                yield sql.END_UNUSED, (holder, kind, grant)
        case w.EndCredentials(fingerprints=fingerprints, at=at):
            for fingerprint in fingerprints:
                yield listing.LIST_ONE, (_micros_or_none(at), CrlReason.SUPERSEDED.value, fingerprint)
                yield sql.END_CREDENTIAL, (fingerprint,)
        case w.RevokeSome(fingerprints=fingerprints, at=at, reason=reason):
            for fingerprint in fingerprints:
                yield listing.LIST_ANY, (micros(at), reason.value, fingerprint)
                yield sql.REVOKE_CREDENTIAL, (fingerprint,)
        case w.RevokeCredentials(kind=kind, holder=holder, at=at, reason=reason):
            yield listing.LIST_HOLDERS, (_micros_or_none(at), reason.value, holder, kind)
            yield sql.REVOKE_CREDENTIALS, (holder, kind)
        case w.HoldCredentials(kind=kind, holder=holder, at=at):
            yield listing.LIST_HOLDERS, (micros(at), CrlReason.CERTIFICATE_HOLD.value, holder, kind)
        case w.ReleaseCredentials(kind=kind, holder=holder):
            yield listing.RELEASE_HOLDERS, (holder, kind)
        case w.SpendToken(token_id=id_):
            yield sql.SPEND_TOKEN, (id_,)
        case w.RevokeToken(token_id=id_, at=at):
            yield sql.REVOKE_TOKEN, (id_, micros(at))
        case _:
            assert_never(write)


def _micros_or_none(at: datetime | None) -> int | None:
    return None if at is None else micros(at)


def _admission_steps(write: w.AdmissionWrite) -> Iterator[Step]:
    match write:
        case w.SetStation(name=name, quota=quota):
            yield sql.SET_STATION, (name, quota)
        case w.SpendStation(name=name, day=day):
            yield sql.SPEND_STATION, (name, day)
        case w.SpendClaim(name=name):
            yield sql.SPEND_CLAIM, (name,)
        case w.CountTakeover(name=name, count=count):
            yield sql.COUNT_TAKEOVER, (name, count)
        case w.QuarantineClaim(name=name, at=at, reason=reason):
            yield sql.QUARANTINE_CLAIM, (name, micros(at), reason)
        case w.ReleaseClaim(name=name):
            yield sql.RELEASE_CLAIM, (name,)
        case w.RevokeClaim(name=name, at=at):
            yield sql.REVOKE_CLAIM, (name, micros(at))
        case w.DropAnchor(name=name):
            yield sql.DROP_ANCHOR, (name,)
        case w.DropDistrust(id=id_):
            yield sql.DROP_DISTRUST, (id_,)
        case w.BindIdevid(binding=binding):
            yield sql.HAS_ANCHOR, (binding.anchor,)
            yield sql.BIND_IDEVID, mapping.IDEVID.row(binding)
            yield sql.IS_BOUND, (binding.key_sha256, binding.device_id)
        case _:
            assert_never(write)


def _request_steps(write: w.RequestWrite) -> Iterator[Step]:
    match write:
        case w.AddRequest(request=request, limits=limits):
            caps = (limits.requests_max, limits.per_model_max, limits.per_address_max)
            yield sql.DROP_REQUESTS, (micros(request.first_seen),)
            if write.makes_room:
                own, unseen = (request.id, request.block, request.network), micros(request.first_seen - UNSEEN)
                yield sql.MAKE_ROOM_IN_MODEL, (*own, limits.per_model_max, unseen, request.model)
                yield sql.MAKE_ROOM, (*own, limits.requests_max, unseen)
            yield sql.ADD_REQUEST, (*mapping.REQUEST.row(request), *((_NO_LIMIT,) * 3 if write.is_announced else caps))
        case w.TouchRequest(request_id=id_, asked=asked, at=at, address=address, until=until):
            yield sql.SEE_REQUEST, (id_, asked, micros(at), address, micros(until) if until else 0)
        case w.DecideRequest(request_id=id_, to=to, by=by, reason=reason, revision=revision):
            decided_at, expires_at = micros(write.at), micros(write.expires_at)
            if to is RequestState.APPROVED:
                yield sql.NO_OTHER_IS_APPROVED, (id_, decided_at)
            yield sql.REQUEST_MAY_MOVE, (id_, decided_at, *filled(DECIDED_FROM[to], sql.DECIDABLE_STATES))
            decision = (id_, to.value, by, decided_at, reason, expires_at)
            if revision is None:
                yield sql.DECIDE_REQUEST, decision
            else:
                yield sql.DECIDE_REQUEST_REVISION, (*decision, revision)
            if to is RequestState.APPROVED:
                yield sql.DENY_OTHER_REQUESTS, (id_, by, decided_at, f"request {id_} was approved", expires_at)
        case w.CollectRequest(request_id=id_):
            yield sql.COLLECT_REQUEST, (id_,)
        case w.DropRequests(now=now):
            yield sql.DROP_REQUESTS, (micros(now),)
        case _:
            assert_never(write)


def _admin_steps(write: w.AdminWrite) -> Iterator[Step]:
    match write:
        case w.DropAnswers(before=before):
            yield sql.DROP_ANSWERS, (micros(before),)
        case w.TakeLease(lease=lease, now=now, by_force=by_force):
            yield sql.TAKE_LEASE, (*mapping.LEASE.row(lease), micros(now), int(by_force))
        case _:
            assert_never(write)


def _retention_steps(write: w.RetentionWrite) -> Iterator[Step]:
    match write:
        case w.DropCredentials(fingerprints=fingerprints, now=now):
            for fingerprint in fingerprints:
                yield sql.CREDENTIAL_HAS_ENDED, (fingerprint, micros(now))
                yield sql.KEEP_REVOKED_KEY, (fingerprint,)
                yield sql.DROP_CREDENTIAL, (fingerprint,)
        case w.DropAudit(upto=upto):
            yield sql.DROP_AUDIT, (upto, 1 << NODE_LEVELS[0])
        case w.DropEvents(upto=upto):
            yield sql.DROP_EVENTS, (upto,)
        case _:
            assert_never(write)
