"""Inventory: adds and changes models, devices, tokens and stations.

Each function validates, reads what it needs, and commits one Change with its audit row, whose actor, address and time
come from `act`. Conflicts are detected by the registry: of two that add the same name at once, one fails.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.credential import Credential, CredentialKind, Station, Token, token_state
from fleet.domain.device import (
    KEY_TYPES,
    OUT_OF_SERVICE,
    Device,
    DeviceFilter,
    DeviceState,
    Model,
    Tags,
    checked_lifetime,
    checked_serial,
    device_id,
    plain_name,
)
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused, known
from fleet.domain.labels import must_be_a_label, must_be_no_tenant
from fleet.domain.model_rules import ModelKind, checked_rules, flat_rules, moved
from fleet.domain.mqtt_overrides import all_filters, check_overrides
from fleet.domain.mqtt_rules import FILTERS_MAX
from fleet.domain.name_templates import check_model_name
from fleet.domain.ports import Issuer, Registry
from fleet.domain.tags import checked_groups, checked_tags, tags_text
from fleet.domain.topic_policy import PRESENCE_TOPICS, check_filter, check_variables, covers, grants_reserved_alone
from fleet.domain.writes import AddCredential, Insert, RevokeToken, SetModel, SetStation, Write
from fleet.services.differences import differences
from fleet.services.revocation import given_reason

TOKEN_USES_MAX = 100_000  # a production run; a token for more is a password
TOKEN_TTL_MIN = timedelta(seconds=1)
TOKEN_TTL_MAX = timedelta(days=90)  # a token that nobody used for a quarter has been forgotten somewhere
TOKEN_TTL = timedelta(hours=1)
STATION_MODELS_MAX = 64
STATION_QUOTA_MAX = 1_000_000
STATION_LIFETIME = timedelta(days=365)


class Labels(Struct, frozen=True):
    """Tags and groups of a device to register."""

    tags: Tags = ()
    groups: Sequence[str] = ()


NO_LABELS = Labels()


class TokenTerms(Struct, frozen=True):
    """How a token may be used."""

    uses: int = 1
    ttl: timedelta = TOKEN_TTL
    takes_over: bool = True
    """Whether it may enroll a device that is in the field, now or when it is used: its bearer could take its place."""


DEFAULT_TERMS = TokenTerms()


class NewStation(Struct, frozen=True):
    """A factory station to enroll."""

    name: str
    models: Sequence[str]
    spki_der: bytes
    """Its public key, a DER SubjectPublicKeyInfo."""
    lifetime: timedelta = STATION_LIFETIME
    quota: int = 0
    """Maximum number of certificates a day (UTC); 0: unlimited."""


def _change(
    action: str, subject: str, writes: tuple[Write, ...], *, act: Act, events: tuple[Event, ...] = (), **detail: str
) -> Change:
    return Change(made_by(act, action, subject, **detail), writes, events)


def checked_model(model: Model) -> Model:
    """`model` itself, when it is valid.

    Raises: Invalid: `bad-name`, `bad-lifetime`, `bad-key-type`, `bad-topic-filter`, `bad-tag`, `too-many-filters`,
    `bad-rule`.
    """
    plain_name(model.name, "model")
    checked_lifetime(model.certificate_lifetime)
    unknown = sorted(set(model.key_types) - set(KEY_TYPES))
    if unknown or not model.key_types:
        what = f"{unknown[0]!r} is not a key type." if unknown else "A model needs a key type."
        raise Invalid("bad-key-type", what, f"Choose from {', '.join(KEY_TYPES)}.")
    said = [each.said for each in model.rules.mqtt.overrides]
    others = [each.get(name, ()) for each in said for name in ("publish", "subscribe")]
    for filters in (model.publish, model.subscribe, *others):
        if len(filters) > FILTERS_MAX:
            raise Invalid("too-many-filters", f"A model has at most {FILTERS_MAX} filters of each kind.")
        for text in filters:
            check_variables(check_filter(text))
    checked_rules(model.rules)
    check_overrides(model.rules.mqtt)
    check_model_name(model.name, model.rules.profile.dns_name, model.rules.profile.uris)
    return model


def _must_grant_something(filters: Iterable[str]) -> None:
    """Raises: Invalid (`reserved-topic`): one of these, to publish, is the fleet's."""
    for text in filters:
        if grants_reserved_alone(text):
            reads = "" if covers(PRESENCE_TOPICS, text) else "; a device may subscribe to its own of these anyway"
            what = f"The fleet alone publishes to {text}{reads}."
            raise Invalid("reserved-topic", what, "Let devices publish elsewhere, such as devices/{id}/up/#.")


async def add_model(registry: Registry, model: Model, *, act: Act, tenants: Collection[str] = ()) -> None:
    """Bring in a model. `tenants`: names of those that have an issuing CA.

    Raises: Invalid: see `checked_model`, `reserved-topic`. Refused (`no-such-tenant`). Conflict: `model-exists`,
    `name-taken`.
    """
    write = Insert(checked_model(model))
    _must_grant_something(all_filters(model)[0])
    must_be_a_label(model.name, "model")
    must_be_no_tenant(model.name, tenants)
    _must_have_a_ca(model, tenants)
    await registry.commit(_change("model.add", f"model {model.name}", (write,), act=act))


async def set_model(registry: Registry, model: Model, *, act: Act, tenants: Collection[str] = ()) -> Model:
    """Replace the model of the same name, and return it as stored. It applies to live sessions at once. A model that
    moves to another tenant keeps the previous one among its former tenants.

    Raises: Invalid: see `checked_model`, `reserved-topic`: a filter that is new. Refused (`no-such-tenant`).
    Conflict: `no-such-model`, `model-kind-fixed`, `model-has-devices`.
    """
    old = await registry.model(model.name)  # of the same revision, or the commit is a Conflict
    if old is not None and old.rules.tenant != model.rules.tenant:
        _must_have_a_ca(model, tenants)
        model = replace(model, rules=moved(model.rules, old.rules.tenant))
    if old is not None and old.rules.kind is not model.rules.kind:
        raise Conflict("model-kind-fixed", f"Model {model.name} is of {old.rules.kind}s.", "Add another one.")
    write = SetModel(checked_model(model))
    before = all_filters(old)[0] if old is not None else ()
    _must_grant_something(each for each in all_filters(model)[0] if each not in before)
    if model.rules.profile.service and old is not None and not old.rules.profile.service:
        await _must_have_no_devices(registry, model.name)
    changed = differences(_fields(old or model), _fields(model))
    events = (Event(EventKind.MODEL_CHANGED, model.name),)
    subject = f"model {model.name}"
    await registry.commit(_change("model.set", subject, (write,), act=act, events=events, **changed))
    return replace(model, revision=model.revision + 1)


async def _must_have_no_devices(registry: Registry, model: str) -> None:
    """Its devices were admitted without an approval, and a renewal would make servers of them."""
    if await registry.devices(DeviceFilter(model=model), limit=1):
        raise Conflict("model-has-devices", f"Model {model} has devices already.", "Add another model for services.")


def _must_have_a_ca(model: Model, tenants: Collection[str]) -> None:
    if model.rules.tenant and model.rules.tenant not in tenants:
        raise Refused(
            "no-such-tenant",
            f"There is no tenant {model.rules.tenant}.",
            f"Make its issuing CA first, in the fleet's home: fleet tenant add {model.rules.tenant}",
        )


def _fields(model: Model) -> dict[str, object]:
    own = {name: getattr(model, name) for name in ("key_types", "publish", "subscribe", "retain")}
    return {"lifetime": model.certificate_lifetime, **own, **flat_rules(model.rules)}


async def known_model(registry: Registry, name: str) -> Model:
    return known(await registry.model(name), "model", name)


async def must_be_of_devices(registry: Registry, name: str) -> None:
    """What a factory is trusted for. Raises: NotFound (`no-such-model`). Refused (`application-model`)."""
    if (await known_model(registry, name)).rules.kind is not ModelKind.DEVICE:
        raise application_model(name)


def application_model(name: str) -> Refused:
    message = f"Model {name} is of applications, which stations, claims, manufacturers and manifests can't vouch for."
    return Refused("application-model", message, f"Make a token: fleet token create --model {name}")


async def add_device(
    registry: Registry, id_text: str, model: str, *, hardware_serial: str = "", labels: Labels = NO_LABELS, act: Act
) -> Device:
    """Register a device, so that it can enroll.

    Raises: Invalid: `bad-device-id`, `bad-hardware-serial`, and what `checked_tags` and `checked_groups` raise.
    NotFound (`no-such-model`). Conflict: `device-exists`: in whatever state it is, a device is never registered
    anew, so this cannot bring a revoked one back; `serial-taken`: by one of the model that is not revoked or retired.
    """
    id_, tags, groups = device_id(id_text), checked_tags(labels.tags), checked_groups(labels.groups)
    device = Device(id_, model, DeviceState.REGISTERED, act.now, hardware_serial, tags=tags, groups=groups)
    checked_serial(hardware_serial)
    await known_model(registry, model)
    events = (Event(EventKind.DEVICE_STATE, device.id, device.state.value),)
    detail = {"tags": tags_text(device.tags), "groups": " ".join(device.groups)}
    detail = {name: text for name, text in detail.items() if text}
    subject = f"device {device.id}"
    change = _change("device.add", subject, (Insert(device),), act=act, events=events, model=model, **detail)
    await registry.commit(change)
    return device


async def create_token(
    registry: Registry,
    *,
    device: str | None = None,
    model: str | None = None,
    terms: TokenTerms = DEFAULT_TERMS,
    act: Act,
) -> tuple[Token, str]:
    """A new token for one registered device, or for new devices of one model; and its text "ID.SECRET", which exists
    only in this answer: the registry keeps the SHA-256 of the secret.

    Raises: Invalid: `bad-token-scope`, `bad-token-uses`, `bad-token-ttl`. NotFound: `no-such-device`,
    `no-such-model`. Refused: `device-revoked`, `device-retired`: it could never be used; `already-enrolled`.
    """
    if (device is None) == (model is None):
        raise Invalid("bad-token-scope", "A token is for one device or for one model, and not for both.")
    if not 1 <= terms.uses <= TOKEN_USES_MAX:
        raise Invalid("bad-token-uses", f"A token has 1 to {TOKEN_USES_MAX} uses.")
    if not TOKEN_TTL_MIN <= terms.ttl <= TOKEN_TTL_MAX:
        raise Invalid("bad-token-ttl", f"A token is valid for one second to {TOKEN_TTL_MAX.days} days.")
    if model is not None:
        await known_model(registry, model)
    holder = await _enrollable(registry, device) if device is not None else None
    if holder is not None and not terms.takes_over:
        await _must_be_new(registry, holder)
    import secrets  # a listing makes none

    secret = secrets.token_urlsafe(32)
    token = Token(
        id=secrets.token_hex(6),
        secret_sha256=hashlib.sha256(secret.encode("ascii")).digest(),
        device_id=holder.id if holder else None,
        model=model,
        uses_max=terms.uses,
        uses=0,
        created_at=act.now,
        expires_at=act.now + terms.ttl,
        takes_over=terms.takes_over and holder is not None,
        made_by=act.actor,
    )
    scope = f"device {device}" if device is not None else f"model {model}"
    change = _change("token.create", f"token {token.id}", (Insert(token),), act=act, scope=scope)
    await registry.commit(change)
    return token, f"{token.id}.{secret}"


async def _enrollable(registry: Registry, id_text: str) -> Device:
    device = await registry.device(device_id(id_text))
    if device is None:
        advice = f"Register it with: fleet device add {id_text} --model MODEL"
        raise NotFound("no-such-device", f"There is no device {id_text}.", advice)
    if device.state in OUT_OF_SERVICE:
        message = f"Device {device.id} is {device.state} permanently."
        raise Refused(f"device-{device.state}", message, "Register the hardware under a new id.")
    return device


async def _must_be_new(registry: Registry, device: Device) -> None:
    from fleet.domain.issuance_context import is_in_the_field

    held = [c for c in await registry.credentials(device.id) if c.kind is CredentialKind.DEVICE]
    if is_in_the_field(device, held):
        raise Refused(
            "already-enrolled",
            f"Device {device.id} is in the field, and with its token another one could take its place.",
            "Ask an operator with the permission to change devices.",
        )


async def revoke_token(registry: Registry, token_id: str, *, act: Act) -> None:
    """Revoke the token; certificates that it earned stay.

    Raises: NotFound (`no-such-token`). Conflict (`token-gone`): revoked already.
    """
    token = known(await registry.token(token_id), "token", token_id)
    await registry.commit(token_revocation(token, act=act))


def token_revocation(token: Token, *, act: Act, reason: str = "") -> Change:
    """The Change that revokes `token`. Raises: Invalid (`bad-reason`)."""
    changed = differences({"state": _state(token, act.now)}, {"state": "revoked"})
    entry = made_by(act, "token.revoke", f"token {token.id}", **given_reason(reason), **changed)
    return Change(entry, (RevokeToken(token.id, act.now),))


def _state(token: Token, now: datetime) -> str:
    state = token_state(token, now)
    return f"open, {token.uses} of {token.uses_max} uses" if state == "open" else state


def _checked_quota(quota: int) -> int:
    if not 0 <= quota <= STATION_QUOTA_MAX:
        raise Invalid(
            "bad-quota", f"A station may obtain 1 to {STATION_QUOTA_MAX} certificates a day, or 0 for no limit."
        )
    return quota


async def _new_station(registry: Registry, name: str, models: Sequence[str], quota: int, now: datetime) -> Station:
    plain_name(name, "station")
    if not 1 <= len(models) <= STATION_MODELS_MAX:
        raise Invalid("bad-station-models", f"A station provisions 1 to {STATION_MODELS_MAX} models.")
    for model in models:
        await must_be_of_devices(registry, model)
    if await registry.station(name) is not None:
        raise Conflict("station-exists", f"Station {name} exists already.", "Choose another name.")
    return Station(name, tuple(dict.fromkeys(models)), now, _checked_quota(quota))


async def enroll_station(registry: Registry, issuer: Issuer, new: NewStation, *, act: Act) -> Credential:
    """Record a factory station together with a certificate for its key: both, or neither.

    Raises: Invalid: `bad-name`, `bad-station-models`, `bad-quota`, `bad-lifetime`. NotFound (`no-such-model`). Conflict
    (`station-exists`). Refused: `application-model`; the issuer cannot sign that long.
    """
    from fleet.domain.enrollment import permit_by_operator  # a listing at a home does without

    checked_lifetime(new.lifetime)
    station = await _new_station(registry, new.name, new.models, new.quota, act.now)
    until = act.now + new.lifetime
    permit = permit_by_operator(CredentialKind.STATION, new.name, new.spki_der, until, act.now)
    credential = issuer.issue(permit, act.now)
    detail = {"models": " ".join(station.models), "serial": credential.serial}
    if new.quota:
        detail["quota"] = str(new.quota)
    entry = made_by(act, "station.add", f"station {new.name}", **detail)
    event = Event(EventKind.CREDENTIAL_ISSUED, new.name, credential.fingerprint.hex())
    await registry.commit(Change(entry, (Insert(station), AddCredential(credential)), (event,)))
    return credential


async def set_station_quota(registry: Registry, name: str, quota: int, *, act: Act) -> Station:
    """Limit the station to `quota` certificates a day (UTC); 0: unlimited.

    Raises: Invalid (`bad-quota`). NotFound (`no-such-station`).
    """
    station = known(await registry.station(name), "station", name)
    write = SetStation(name, _checked_quota(quota))
    changed = differences({"quota": station.quota}, {"quota": quota})
    await registry.commit(_change("station.set", f"station {name}", (write,), act=act, **changed))
    return replace(station, quota=quota)
