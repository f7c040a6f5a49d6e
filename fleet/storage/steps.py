"""Which statements each Write takes, in order, on every engine.

Each engine adds what differs: it writes the rows of an `ImportDevices` in bulk, and deletes a device's old tags before
the steps of a `TagDevice`.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, assert_never

from msgspec.structs import astuple

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
from fleet.storage import statements as sql
from fleet.storage.mapping import json_text, micros
from fleet.storage.statement import Statement
from fleet.storage.statements import filled
from fleet.wire.hardware_serial import comparable

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


_PLAIN: dict[type[w.PlainWrite], tuple[Statement, ...]] = {
    w.FirstUse: (sql.IS_NOT_USED,),
    w.MarkUsed: (sql.CREDENTIAL_IS_USABLE, sql.USE_CREDENTIAL, sql.SUPERSEDE_OLDER),
    w.StillUsable: (sql.CREDENTIAL_IS_USABLE,),
    w.ReleaseCredentials: (sql.RELEASE_HOLDERS,),
    w.NewestForKeyIs: (sql.NEWEST_FOR_KEY_IS,),
    w.SpendToken: (sql.SPEND_TOKEN,),
    w.RevokeToken: (sql.REVOKE_TOKEN,),
    w.SetStation: (sql.SET_STATION,),
    w.SpendStation: (sql.SPEND_STATION,),
    w.SpendClaim: (sql.SPEND_CLAIM,),
    w.CountTakeover: (sql.COUNT_TAKEOVER,),
    w.QuarantineClaim: (sql.QUARANTINE_CLAIM,),
    w.ReleaseClaim: (sql.RELEASE_CLAIM,),
    w.RevokeClaim: (sql.REVOKE_CLAIM,),
    w.DropAnchor: (sql.DROP_ANCHOR,),
    w.DropDistrust: (sql.DROP_DISTRUST,),
    w.CollectRequest: (sql.COLLECT_REQUEST,),
    w.DropRequests: (sql.DROP_REQUESTS,),
    w.DropAnswers: (sql.DROP_ANSWERS,),
    w.DropEvents: (sql.DROP_EVENTS,),
}
"""The statements of a PlainWrite."""


def steps_of(write: w.SteppedWrite) -> Iterator[Step]:
    """Each statement that `write` takes, with its parameters, in order."""
    if isinstance(write, w.PlainWrite):
        cells = tuple(micros(each) if isinstance(each, datetime) else each for each in astuple(write))
        return ((statement, cells) for statement in _PLAIN[type(write)])
    if isinstance(write, w.Insert):
        return _insert_steps(write.value)
    if isinstance(write, w.CredentialWrite):
        return _credential_steps(write)
    if isinstance(write, w.DeviceWrite):
        return _device_steps(write)
    if isinstance(write, w.RequestWrite):
        return _request_steps(write)
    return _retention_steps(write)


def serial_parameters(device: Device) -> tuple[str, ...]:
    """Of SERIAL_IS_FREE."""
    return device.hardware_serial, device.model, device.id, comparable(device.hardware_serial)


def _insert_steps(value: w.Inserted) -> Iterator[Step]:
    statement, table = INSERTS[type(value)]
    yield statement, table.row(value)
    if isinstance(value, Device):
        if value.hardware_serial:
            yield sql.SERIAL_IS_FREE, serial_parameters(value)
        yield from ((sql.ADD_TAG, row) for row in mapping.tag_rows(value))


def _device_steps(write: w.DeviceWrite) -> Iterator[Step]:
    match write:
        case w.SetModel(model=model):
            yield sql.HAS_MODEL, (model.name,)
            yield sql.SET_MODEL, mapping.MODEL.row(model)
        case w.MoveDevice(device_id=id_, to=to, revision=revision):
            states = filled(write.allowed, sql.DEVICE_STATES)
            expires_at = _micros_or_none(write.expires_at)
            if write.budget is not None:
                before, after = write.budget
                spent = (0 if before is None else micros(before), micros(after))
                yield sql.MOVE_DEVICE_AND_SPEND, (id_, to.value, expires_at, *states, *spent)
            elif revision is None:
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
        case w.BindIdevid(binding=binding):
            yield sql.HAS_ANCHOR, (binding.anchor,)
            yield sql.BIND_IDEVID, mapping.IDEVID.row(binding)
            yield sql.IS_BOUND, (binding.key_sha256, binding.device_id)
        case _:
            assert_never(write)


def _credential_steps(write: w.CredentialWrite) -> Iterator[Step]:
    match write:
        case w.AddCredential(credential=credential):
            yield sql.KEY_IS_FREE, (credential.key_sha256, credential.holder, credential.kind.value)
            yield sql.ADD_CREDENTIAL, mapping.CREDENTIAL.row(credential)
        case w.EndUnused(kind=kind, holder=holder, grant=grant, newest=newest):
            if newest is None:
                yield sql.NONE_IS_UNUSED, (holder, kind, grant)
            else:
                yield sql.NEWEST_UNUSED_IS, (holder, kind, grant, newest)
                yield sql.END_UNUSED, (holder, kind, grant)
        case w.EndCredentials(fingerprints=fingerprints, at=at):
            for fingerprint in fingerprints:
                yield sql.LIST_ONE, (_micros_or_none(at), CrlReason.SUPERSEDED.value, fingerprint)
                yield sql.END_CREDENTIAL, (fingerprint,)
        case w.RevokeSome(fingerprints=fingerprints, at=at, reason=reason):
            for fingerprint in fingerprints:
                yield sql.LIST_ANY, (micros(at), reason.value, fingerprint)
                yield sql.REVOKE_CREDENTIAL, (fingerprint,)
        case w.RevokeCredentials(kind=kind, holder=holder, at=at, reason=reason):
            yield sql.LIST_HOLDERS, (_micros_or_none(at), reason.value, holder, kind)
            yield sql.REVOKE_CREDENTIALS, (holder, kind)
        case w.HoldCredentials(kind=kind, holder=holder, at=at):
            yield sql.LIST_HOLDERS, (micros(at), CrlReason.CERTIFICATE_HOLD.value, holder, kind)
        case _:
            assert_never(write)


def _micros_or_none(at: datetime | None) -> int | None:
    return None if at is None else micros(at)


def _request_steps(write: w.RequestWrite) -> Iterator[Step]:
    match write:
        case w.AddRequest(request=request, limits=limits):
            caps = (limits.requests_max, limits.per_model_max, limits.per_address_max)
            yield sql.DROP_REQUESTS, (micros(request.first_seen),)
            if write.makes_room:
                own = (request.id, request.region or request.block, request.block, request.network)
                unseen = micros(request.first_seen - UNSEEN)
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
        case w.TakeLease(lease=lease, now=now, by_force=by_force):
            yield sql.TAKE_LEASE, (*mapping.LEASE.row(lease), micros(now), int(by_force))
        case _:
            assert_never(write)
