"""Rules of a model beyond topics and lifetimes: admission paths, certificate profile, renewal, MQTT sessions.

One codec, `rules_json` and `rules_of`, serves the registry, the admin API and the command line: a rule that is added
here is stored, shown and changed everywhere. What a rule is for and its limits, as the API publishes and checks them,
stand at its field; a text that is "" is none, and durations are whole seconds in JSON.
"""

import enum
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints
from urllib.parse import urlsplit

from msgspec import Meta, Struct, convert, field, to_builtins
from msgspec.structs import replace

from fleet.domain.errors import Invalid
from fleet.domain.http_policy import RULE_SIZE_MAX, RULES_MAX, http_rule
from fleet.domain.members import about, at_most, between, choice, seconds
from fleet.domain.mqtt_rules import MqttRules, check_mqtt_rules, must
from fleet.domain.name_templates import TEMPLATE_SIZE_MAX, check_dns_template, check_uri_template, check_user_template
from fleet.wire.identifiers import NAME

NO_TIME = timedelta(0)
GRACE_MAX = timedelta(days=3650)
SPREAD_MAX = timedelta(days=365)
CERTIFICATES_PER_DAY_MAX = 1_000_000
WEBHOOK_URL_SIZE_MAX = 512
ORGANISATION_SIZE_MAX = 64  # X.520 ub-organization-name
URI_NAMES_MAX = 4
FORMER_TENANTS_MAX = 16  # each is one more CA that can issue for the model's devices


class ModelKind(enum.StrEnum):
    """What a model's certificates are for. A model keeps its kind."""

    DEVICE = "device"
    APPLICATION = "application"
    """Back-end programs, by default with the topics of all devices: never admitted by a path of the factory."""


class AdmissionPath(enum.StrEnum):
    """How a device may authorize its first enrollment."""

    TOKEN = "token"  # noqa: S105  the name of a path
    """A one-time token, for a device or for new devices of a model."""
    STATION = "station"
    """A factory station that vouches for the device (a registration authority: RFC 7030, 3.7)."""
    CLAIM = "claim"
    """A claim certificate shared by a batch, valid for this purpose only."""
    IDEVID = "idevid"
    """The manufacturer's certificate of the device (IDevID, IEEE 802.1AR)."""
    MANIFEST = "manifest"
    """A manifest of keys or hardware serials, imported in advance."""
    APPROVAL = "approval"
    """An operator approves; the device polls until then."""


class RenewalKey(enum.StrEnum):
    """Key of a renewal."""

    ANY = "any"
    NEW = "new"
    SAME = "same"


OF_APPLICATIONS = frozenset({AdmissionPath.TOKEN, AdmissionPath.APPROVAL})
"""Admission paths by which an operator decides on each certificate; the others decide for batches of devices."""

EXTENDED_KEY_USAGES = {
    "clientAuth": "1.3.6.1.5.5.7.3.2",
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "ipsecIKE": "1.3.6.1.5.5.7.3.17",
    "eapOverLAN": "1.3.6.1.5.5.7.3.14",
    "documentSigning": "1.3.6.1.5.5.7.3.36",
}
"""What a device's certificate may be good for beside clientAuth, which every one has. A server's is a `service`."""


class AdmissionRules(Struct, frozen=True):
    """How devices earn a first certificate."""

    paths: tuple[AdmissionPath, ...] = (AdmissionPath.TOKEN, AdmissionPath.STATION)
    any_idevid: Annotated[bool, about("Whether any device of a trust anchor may enroll, on the manifest or not.")] = (
        False
    )
    webhook: Annotated[str, at_most(WEBHOOK_URL_SIZE_MAX, "https URL asked before each first certificate.")] = ""


_Uri = Annotated[str, at_most(TEMPLATE_SIZE_MAX, "{id} and {model} are filled in.")]


class ProfileRules(Struct, frozen=True):
    """What certificates hold beside the device id."""

    extended_key_usages: Annotated[
        tuple[Annotated[str, choice(EXTENDED_KEY_USAGES)], ...],
        Meta(min_length=1, description="clientAuth is always among them."),
    ] = ("clientAuth",)
    organisation: Annotated[str, at_most(ORGANISATION_SIZE_MAX, "O of the subject.")] = ""
    hardware_module_name: Annotated[bool, about("Whether the SAN holds a known hardware serial (IEEE 802.1AR).")] = True
    """As hwModuleName (IEEE 802.1AR, 8.10.4)."""
    dns_name: Annotated[str, at_most(TEMPLATE_SIZE_MAX, "DNS name in the SAN; {id}, {model} are filled.")] = ""
    uris: Annotated[tuple[_Uri, ...], at_most(URI_NAMES_MAX, "URIs in the SAN.")] = ()
    email: Annotated[str, at_most(TEMPLATE_SIZE_MAX, "Mail address in the SAN; {id} and {model} are filled in.")] = ""
    """As rfc822Name."""
    upn: Annotated[str, at_most(TEMPLATE_SIZE_MAX, "User principal name in the SAN: USER@REALM; likewise.")] = ""
    """As Windows and RADIUS servers look for."""
    service: Annotated[
        bool, about("Whether certificates are good for a server too, under their DNS name; each needs an approval.")
    ] = False
    """A service of a partner, say. An operator approves each."""
    csr_extended_key_usages: Annotated[bool, about("Whether a CSR may ask for fewer of the extended key usages.")] = (
        False
    )
    server_keygen: Annotated[bool, about("Server-side key generation (RFC 7030, 4.4).")] = False
    """On request."""
    cdp: Annotated[bool, about("Whether certificates name their CRL, where the CA publishes one.")] = True
    """RFC 5280, 4.2.1.13."""
    aia: Annotated[bool, about("Whether certificates name the OCSP responder and the CA's certificate, likewise.")] = (
        True
    )
    """RFC 5280, 4.2.2.1."""
    binding: Annotated[bool, about("Whether requests must carry the channel binding (RFC 7030, 3.5).")] = False


class Campaign(Struct, frozen=True, forbid_unknown_fields=True):
    """A renewal campaign: certificates issued before `before` are renewed early, spread over some hours."""

    before: datetime
    start: datetime
    """When the campaign was started."""
    spread: timedelta = field(name="spread_seconds")


class RenewalRules(Struct, frozen=True):
    """How devices renew."""

    key: Annotated[RenewalKey, about("Which key a renewal must be for.")] = RenewalKey.ANY
    grace: Annotated[
        timedelta,
        seconds(NO_TIME, GRACE_MAX, "How long after notAfter a certificate may still be renewed, and nothing else."),
    ] = field(default=NO_TIME, name="grace_seconds")
    campaign: Campaign | None = None
    certificates_per_day: Annotated[
        int,
        between(
            0,
            CERTIFICATES_PER_DAY_MAX,
            "Certificates that a device may get in a day, or in a lifetime if that is shorter; 0 for no limit.",
        ),
    ] = 24


_HttpRule = Annotated[
    str, at_most(RULE_SIZE_MAX, "Methods and a path: `GET,HEAD /v1/devices/{id}/**`; * is any method, or one segment.")
]


class HttpRules(Struct, frozen=True):
    """Which HTTP requests a reverse proxy that asks us may pass on."""

    allow: Annotated[
        tuple[_HttpRule, ...],
        at_most(RULES_MAX, "With none, devices may request everything, and applications nothing."),
    ] = ()
    """As `fleet.domain.http_policy` has them. With one, all others are denied."""


class ModelRules(Struct, frozen=True):
    tenant: str = ""
    """The tenant whose issuing CA signs; "" for the fleet's own."""
    former_tenants: tuple[str, ...] = ()
    """Tenants before the model was moved: their certificates stay valid until renewed, or until this is emptied."""
    admission: AdmissionRules = field(default=AdmissionRules())
    profile: ProfileRules = field(default=ProfileRules())
    renewal: RenewalRules = field(default=RenewalRules())
    mqtt: MqttRules = field(default=MqttRules())
    http: HttpRules = field(default=HttpRules())
    kind: ModelKind = ModelKind.DEVICE

    @property
    def signers(self) -> tuple[str, ...]:
        """Tenants whose CA may have signed the certificate of a device."""
        return (self.tenant, *self.former_tenants)


DEFAULT_RULES = ModelRules()

_GROUPS = (AdmissionRules, ProfileRules, RenewalRules, MqttRules, HttpRules)
_Rules = TypeVar("_Rules", bound=Struct)
_NAME = re.compile(NAME)
_ORGANISATION = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_TYPED = (datetime, timedelta)  # msgspec leaves them to `_json` and `_typed`


def rules_json(rules: ModelRules) -> dict[str, Any]:
    """`rules` as JSON types, defaults included. Durations are whole seconds, `..._seconds`."""
    shown: dict[str, Any] = _json(to_builtins(rules, builtin_types=_TYPED))
    return shown


def _json(value: Any) -> Any:
    match value:
        case dict():
            return {name: _json(each) for name, each in value.items()}
        case list() | tuple():
            return [_json(each) for each in value]
        case datetime():
            return value.astimezone(UTC).isoformat()
        case timedelta():
            return int(value.total_seconds())
        case _:
            return value


def flat_rules(rules: ModelRules) -> dict[str, Any]:
    """As `rules_json`, each by its whole name: "profile.uris"."""
    shown = rules_json(rules)
    groups = {key: shown.pop(key) for key, value in tuple(shown.items()) if isinstance(value, dict)}
    return shown | {f"{key}.{name}": value for key, group in groups.items() for name, value in group.items()}


def rules_of(given: Mapping[str, Any], old: ModelRules = DEFAULT_RULES) -> ModelRules:
    """`old` updated by `given`, in the shape of `rules_json`; omitted members are unchanged.

    Raises: Invalid (`bad-rule`): an unknown name or an invalid value.
    """
    return _updated(old, given)


def _updated(old: _Rules, given: Mapping[str, Any], group: str = "") -> _Rules:
    members = dict(zip(old.__struct_encode_fields__, old.__struct_fields__, strict=True))
    changed: dict[str, Any] = {}
    for key, value in given.items():
        name, member = f"{group}{key[:80]}", members.get(key)
        before = getattr(old, member) if member is not None else None
        if isinstance(before, _GROUPS) and isinstance(value, Mapping):
            changed[key] = _updated(before, value, f"{key}.")
        elif member is None or isinstance(before, _GROUPS):
            raise Invalid(
                "bad-rule",
                f"{name!r} is not a rule of a model.",
                f"Choose from {', '.join(flat_rules(DEFAULT_RULES))}.",
            )
        else:
            changed[member] = _value(name, member_kinds(type(old))[key], value)
    return replace(old, **changed)


@cache
def member_kinds(rules: type[Struct]) -> dict[str, Any]:
    """The type of each member by its name in JSON, without its limits: `checked_rules` has sentences for those."""
    kinds = get_type_hints(rules)
    return {key: kinds[name] for key, name in zip(rules.__struct_encode_fields__, rules.__struct_fields__, strict=True)}


def _value(name: str, kind: Any, value: Any) -> Any:
    try:
        return convert(_typed(name, value), kind, builtin_types=_TYPED)
    except (ValueError, OverflowError, TypeError):
        raise Invalid("bad-rule", f"{str(value)[:80]!r} is not a value for {name}.") from None


def _typed(name: str, value: Any) -> Any:
    """Raises: ValueError, OverflowError, TypeError."""
    match value:
        case Mapping():
            return {key: _typed(key, each) for key, each in value.items()}
        case list() | tuple():
            if any(isinstance(each, Mapping) for each in value):
                return tuple(_typed(name, each) for each in value)
            return tuple(dict.fromkeys(value))
        case int() if name.endswith("_seconds") and not isinstance(value, bool):
            return timedelta(seconds=value)
        case str() if name in Campaign.__struct_fields__:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError("no time with a zone")
            return moment.astimezone(UTC)
        case _:
            return value


def moved(rules: ModelRules, before: str) -> ModelRules:
    """`rules` of a model whose tenant was `before`."""
    former = dict.fromkeys((*rules.former_tenants, before))
    former.pop(rules.tenant, None)
    return replace(rules, former_tenants=tuple(former))


def checked_rules(rules: ModelRules) -> ModelRules:
    """`rules`, validated for use by devices. Raises: Invalid (`bad-rule`, `bad-name`)."""
    for name in rules.signers:
        must(not name or bool(_NAME.fullmatch(name)), f"{name[:80]!r} is not a name for a tenant.")
    former = f"A model has at most {FORMER_TENANTS_MAX} former tenants."
    must(len(rules.former_tenants) <= FORMER_TENANTS_MAX, former, "End them first.")
    _check_admission(rules.admission)
    if rules.kind is ModelKind.APPLICATION:
        admitted = "Applications are admitted by a token or an operator's approval."
        must(
            OF_APPLICATIONS.issuperset(rules.admission.paths),
            admitted,
            "Give --admit token, or --admit approval.",
        )
    _check_profile(rules.profile)
    _check_service(rules)
    must(NO_TIME <= rules.renewal.grace <= GRACE_MAX, "A grace lasts from nothing to 3650 days.")
    spread = rules.renewal.campaign.spread if rules.renewal.campaign is not None else NO_TIME
    must(NO_TIME <= spread <= SPREAD_MAX, "A campaign is spread over nothing to 365 days.")
    count = rules.renewal.certificates_per_day
    must(0 <= count <= CERTIFICATES_PER_DAY_MAX, f"A device gets 0 to {CERTIFICATES_PER_DAY_MAX} certificates a day.")
    check_mqtt_rules(rules.mqtt)
    must(len(rules.http.allow) <= RULES_MAX, f"A model has at most {RULES_MAX} rules for HTTP requests.")
    for rule in rules.http.allow:
        http_rule(rule)
    return rules


def _check_admission(rules: AdmissionRules) -> None:
    if not rules.webhook:
        return
    try:
        parts = urlsplit(rules.webhook)
    except ValueError:
        parts = urlsplit("")
    if (
        len(rules.webhook) > WEBHOOK_URL_SIZE_MAX
        or not rules.webhook.isprintable()
        or parts.scheme != "https"
        or not parts.hostname
        or "@" in parts.netloc
    ):
        raise Invalid("bad-rule", "A webhook is an https URL without a user name, of at most 512 characters.")


def _check_profile(rules: ProfileRules) -> None:
    unknown = sorted(set(rules.extended_key_usages) - set(EXTENDED_KEY_USAGES))
    if unknown or "clientAuth" not in rules.extended_key_usages:
        what = f"{unknown[0][:80]!r} is not known here." if unknown else "A device's certificate needs clientAuth."
        raise Invalid("bad-rule", what, f"Choose from {', '.join(EXTENDED_KEY_USAGES)}.")
    name = rules.organisation
    if name and (not _ORGANISATION.fullmatch(name) or not name.isprintable() or name.strip() != name):
        raise Invalid("bad-rule", f"An organisation has 1 to {ORGANISATION_SIZE_MAX} printable characters.")
    if rules.dns_name:
        check_dns_template(rules.dns_name)
    must(len(rules.uris) <= URI_NAMES_MAX, f"A certificate takes at most {URI_NAMES_MAX} URIs.")
    for uri in rules.uris:
        check_uri_template(uri)
    for template in filter(None, (rules.email, rules.upn)):
        check_user_template(template)


def _check_service(rules: ModelRules) -> None:
    if not rules.profile.service:
        return
    is_approved, has_name = rules.admission.paths == (AdmissionPath.APPROVAL,), "{id}" in rules.profile.dns_name
    approval = "A service's certificate needs an operator's approval."
    must(is_approved, approval, "Admit by approval alone: --admit approval")
    must(has_name, "A service's certificate needs a DNS name of its own.", "Give one with {id}.")
