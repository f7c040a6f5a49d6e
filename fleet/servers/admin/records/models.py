"""Models: what their devices' certificates hold, by which paths devices enroll, which topics they may use."""

import functools
import operator
from collections.abc import Callable, Collection
from datetime import timedelta
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, cast, get_args, get_origin

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, to_builtins
from msgspec.structs import fields, replace

from fleet.config.timestamps import rfc3339
from fleet.domain import device as domain
from fleet.domain import model_rules, mqtt_rules
from fleet.domain.members import about, at_most, choice, pattern, seconds
from fleet.domain.model_rules import FORMER_TENANTS_MAX, NO_TIME, SPREAD_MAX, rules_json, rules_of
from fleet.domain.mqtt_rules import FILTERS_MAX
from fleet.servers.admin.records.base import Changes, Count, Name, Record, TimeText, check_times
from fleet.services.renewal import Progress
from fleet.wire.identifiers import NAME

_Record = TypeVar("_Record", bound=Record)

Lifetime = Annotated[int, seconds(domain.LIFETIME_MIN, domain.LIFETIME_MAX, "Validity period of a certificate.")]
_KeyTypes = Annotated[list[Annotated[str, choice(domain.KEY_TYPES)]], Meta(min_length=1)]
_Filters = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=1024)]],
    at_most(FILTERS_MAX, "MQTT topic filters; {id}, {model}, {tenant}, {tag:KEY} are the device's own."),
]
_TENANT = rf"^({NAME})?\Z"
_Tenant = Annotated[str, pattern(_TENANT, "Tenant whose issuing CA signs; empty for the fleet's own.")]
_FormerTenants = Annotated[
    list[Annotated[str, pattern(_TENANT)]],
    at_most(
        FORMER_TENANTS_MAX, "Tenants whose certificates are still valid for its devices; a move adds the previous one."
    ),
]


class Campaign(Record):
    """A renewal campaign: certificates issued before `before` are renewed within `spread_seconds` of `start`."""

    before: TimeText
    start: TimeText
    spread_seconds: Annotated[int, seconds(NO_TIME, SPREAD_MAX)]

    def __post_init__(self) -> None:
        check_times(self, "before", "start")


def _members_of(kind: type[Struct], but: Collection[str] = ()) -> Callable[[type[_Record]], type[_Record]]:
    """Gives a record the members of `kind`, `but` these, with their limits; each may be left out."""

    def with_members(record: type[_Record]) -> type[_Record]:
        given = [each for each in fields(kind) if each.name not in but]
        members = [(each.encode_name, _in_json(each.type) | UnsetType, UNSET) for each in given]
        text = {"__doc__": record.__doc__}
        made = defstruct(record.__name__, members, bases=(record,), namespace=text, module=record.__module__)
        return cast("type[_Record]", made)

    return with_members


def _in_json(kind: Any) -> Any:
    """A type of the domain as it is in JSON, with its limits."""
    if get_origin(kind) is Annotated:
        return Annotated[(_in_json(kind.__origin__), *kind.__metadata__)]
    if get_origin(kind) is UnionType:
        return functools.reduce(operator.or_, map(_in_json, get_args(kind)))
    return {timedelta: int, model_rules.Campaign: Campaign}.get(kind, kind)


@_members_of(model_rules.AdmissionRules)
class AdmissionRules(Record):
    """How devices earn a first certificate."""


@_members_of(model_rules.ProfileRules)
class ProfileRules(Record):
    """What certificates hold beside the device id."""


@_members_of(model_rules.RenewalRules)
class RenewalRules(Record):
    """How devices renew."""


@_members_of(mqtt_rules.MqttRules)
class MqttRules(Record):
    """How MQTT sessions are treated."""


@_members_of(model_rules.HttpRules)
class HttpRules(Record):
    """Which HTTP requests a reverse proxy that asks us may pass on."""


class Model(Record):
    """A kind of device."""

    name: Name
    lifetime_seconds: Lifetime
    key_types: _KeyTypes
    publish: _Filters
    subscribe: _Filters
    retain: Annotated[bool, about("Whether devices may publish retained messages.")]
    kind: Annotated[
        model_rules.ModelKind,
        about("Whether it is of devices or of back-end applications. It never changes."),
    ]
    tenant: _Tenant
    former_tenants: _FormerTenants
    admission: AdmissionRules
    profile: ProfileRules
    renewal: RenewalRules
    mqtt: MqttRules
    http: HttpRules
    revision: Count

    @classmethod
    def shown(cls, m: domain.Model) -> Self:
        return cls.of(m, lifetime_seconds=int(m.certificate_lifetime.total_seconds()), **rules_json(m.rules))


@_members_of(Model, but=("name", "revision"))
class _Members(Record):
    """What may be said of a model."""

    def made(self, name: str) -> domain.Model:
        """The model `name`; what is not given is as usual for its kind. Raises: Invalid (`bad-rule`)."""
        kind = to_builtins(self).get("kind", model_rules.ModelKind.DEVICE)
        return self.applied(domain.new_model(name, model_rules.ModelKind(kind)))

    def applied(self, model: domain.Model) -> domain.Model:
        """`model` with these members; those that are not given are as in `model`. Raises: Invalid (`bad-rule`)."""
        given: dict[str, Any] = to_builtins(self)
        changed: dict[str, Any] = {name: tuple(given[name]) for name in _TOPICS_AND_KEYS if name in given}
        if "retain" in given:
            changed["retain"] = given["retain"]
        if "lifetime_seconds" in given:
            changed["certificate_lifetime"] = timedelta(seconds=given["lifetime_seconds"])
        rules = {name: given[name] for name in _RULES if name in given}
        return replace(model, rules=rules_of(rules, model.rules), **changed)


_TOPICS_AND_KEYS = ("key_types", "publish", "subscribe")
_RULES = ("kind", "tenant", "former_tenants", "admission", "profile", "renewal", "mqtt", "http")


class NewModel(_Members, kw_only=True):
    """A model to add."""

    name: Name


class ModelReplacement(_Members):
    """A whole model; what is left out is as in a new one."""


class ModelChanges(_Members, Changes):
    """A merge patch (RFC 7396): what is not in it stays as it is."""


class Renewal(Record):
    """A model's renewal campaign: of its devices with a certificate, how many have renewed since."""

    model: Name
    campaign: Campaign | None
    devices: Count
    renewed: Count

    @classmethod
    def shown(cls, p: Progress) -> Self:
        campaign = p.campaign
        if campaign is None:
            return cls.of(p)
        spread = int(campaign.spread.total_seconds())
        shown = Campaign(before=rfc3339(campaign.before), start=rfc3339(campaign.start), spread_seconds=spread)
        return cls.of(p, campaign=shown)
