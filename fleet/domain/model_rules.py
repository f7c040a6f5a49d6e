"""Rules of a model beyond topics and lifetimes: admission paths, certificate profile, renewal, MQTT sessions.

One codec, `rules_json` and `rules_of`, serves the registry, the admin API and the command line: a rule that is added
here is stored, shown and changed everywhere.
"""

import enum
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct, convert, field, to_builtins
from msgspec.structs import fields, replace

from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX
from fleet.domain.errors import Invalid
from fleet.domain.http_policy import RULES_MAX, http_rule
from fleet.domain.name_templates import check_dns_template, check_uri_template, check_user_template

GRACE_MAX = timedelta(days=3650)
SPREAD_MAX = timedelta(days=365)
WEBHOOK_URL_SIZE_MAX = 512
RATE_MAX = 2**31 - 1
BYTES_PER_SECOND_MIN = 1_024  # less, and one read of the transport would take longer than a session is kept waiting
PACKET_SIZE_MIN = 1_024
BURST_MIN, BURST_MAX = timedelta(seconds=1), timedelta(hours=1)
ORGANISATION_SIZE_MAX = 64  # X.520 ub-organization-name
URI_NAMES_MAX = 4
FORMER_TENANTS_MAX = 16  # each is one more CA that can issue for the model's devices


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


EXTENDED_KEY_USAGES = {
    "clientAuth": "1.3.6.1.5.5.7.3.2",
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "ipsecIKE": "1.3.6.1.5.5.7.3.17",
    "eapOverLAN": "1.3.6.1.5.5.7.3.14",
    "documentSigning": "1.3.6.1.5.5.7.3.36",
}
"""What a device's certificate may be good for beside clientAuth, which every one has. A server's is a `service`."""


class AdmissionRules(Struct, frozen=True):
    """Rules for the first certificate."""

    paths: tuple[AdmissionPath, ...] = (AdmissionPath.TOKEN, AdmissionPath.STATION)
    any_idevid: bool = False
    """Whether any device of a trust anchor may enroll, on the manifest or not."""
    webhook: str = ""
    """An https URL called for external authorization of each first certificate; "" for none."""


class ProfileRules(Struct, frozen=True):
    """Content of a certificate besides the device id."""

    extended_key_usages: tuple[str, ...] = ("clientAuth",)
    """Names of EXTENDED_KEY_USAGES."""
    organisation: str = ""
    """O of the subject; "" for none."""
    hardware_module_name: bool = True
    """Whether a known hardware serial is in the SAN as hwModuleName (IEEE 802.1AR, 8.10.4)."""
    dns_name: str = ""
    """Template of a DNS name in the SAN, with {id} and {model}; "" for none."""
    uris: tuple[str, ...] = ()
    """Templates of URIs in the SAN, likewise."""
    email: str = ""
    """Template of a mail address in the SAN (rfc822Name), likewise."""
    upn: str = ""
    """Template of a user principal name in the SAN, likewise: USER@REALM, as Windows and RADIUS servers look for."""
    service: bool = False
    """Whether it is good for a server too, under its DNS name: a service of a partner, say. An operator approves each.
    """
    csr_extended_key_usages: bool = False
    """Whether a CSR may request a subset of `extended_key_usages`."""
    server_keygen: bool = False
    """Whether the server generates keys on request (RFC 7030, 4.4)."""
    cdp: bool = True
    """Whether it names its CRL, if its CA publishes any (RFC 5280, 4.2.1.13)."""
    aia: bool = True
    """Whether it names the OCSP responder and the CA's certificate, likewise (4.2.2.1)."""
    binding: bool = False
    """Whether a request must carry a channel binding (RFC 7030, 3.5)."""


class Campaign(Struct, frozen=True, forbid_unknown_fields=True):
    """A renewal campaign: certificates issued before `before` are renewed early, spread over some hours."""

    before: datetime
    start: datetime
    """When the campaign was started."""
    spread: timedelta = field(name="spread_seconds")


class RenewalRules(Struct, frozen=True):
    """Rules for renewals."""

    key: RenewalKey = RenewalKey.ANY
    grace: timedelta = field(default=timedelta(0), name="grace_seconds")
    """Grace period after notAfter in which a certificate can still be renewed, and nothing else."""
    campaign: Campaign | None = None


class OnDenied(enum.StrEnum):
    """What becomes of an MQTT 3.1.1 session whose PUBLISH is denied: that version has no refusal for a message."""

    ACKNOWLEDGE = "acknowledge"
    """The message is acknowledged and dropped, as brokers do."""
    CLOSE = "close"
    """The connection is closed. Many clients then send the same message again in the next one."""


class MqttRules(Struct, frozen=True):
    """Rules for MQTT sessions."""

    on_denied: OnDenied = OnDenied.ACKNOWLEDGE
    """For MQTT 3.1.1; with 5.0 the acknowledgement says that the message was refused."""
    messages_per_second: int = 10_000
    """Packets that a device may send on average, of any type; 0 for no limit."""
    bytes_per_second: int = 4_194_304
    """Bytes, likewise."""
    burst: timedelta = field(default=timedelta(seconds=10), name="burst_seconds")
    """How much may be sent at once after a rest: what the rates allow in that time."""
    check_response_topic: bool = True
    """Whether a message or will of MQTT 5.0 may ask for a response only on a topic that the device may subscribe to."""
    subscriptions_max: int = 0
    """Topic filters of a device; 0, or more than fleet.toml allows: what that allows."""
    packet_size_max: int = 0
    """Bytes of an MQTT packet of a device, likewise."""


class HttpRules(Struct, frozen=True):
    """Rules for HTTP requests through a reverse proxy that asks us."""

    allow: tuple[str, ...] = ()
    """Methods and paths, as `fleet.domain.http_policy` has them; none: every request. With one, all others are denied.
    """


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

    @property
    def signers(self) -> tuple[str, ...]:
        """Tenants whose CA may have signed the certificate of a device."""
        return (self.tenant, *self.former_tenants)


DEFAULT_RULES = ModelRules()

_GROUPS = (AdmissionRules, ProfileRules, RenewalRules, MqttRules, HttpRules)
_Rules = TypeVar("_Rules", bound=Struct)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
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
        case tuple():
            return list(value)
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
    members = {member.encode_name: member for member in fields(old)}
    changed: dict[str, Any] = {}
    for key, value in given.items():
        name, member = f"{group}{key[:80]}", members.get(key)
        before = getattr(old, member.name) if member is not None else None
        if isinstance(before, _GROUPS) and isinstance(value, Mapping):
            changed[key] = _updated(before, value, f"{key}.")
        elif member is None or isinstance(before, _GROUPS):
            raise Invalid(
                "bad-rule",
                f"{name!r} is not a rule of a model.",
                f"Choose from {', '.join(flat_rules(DEFAULT_RULES))}.",
            )
        else:
            changed[member.name] = _value(name, member.type, value)
    return replace(old, **changed)


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
        if name and not _NAME.fullmatch(name):
            raise Invalid("bad-rule", f"{name[:80]!r} is not a name for a tenant.")
    if len(rules.former_tenants) > FORMER_TENANTS_MAX:
        raise Invalid("bad-rule", f"A model has at most {FORMER_TENANTS_MAX} former tenants.", "End them first.")
    _check_admission(rules.admission)
    _check_profile(rules.profile)
    _check_service(rules)
    if not timedelta(0) <= rules.renewal.grace <= GRACE_MAX:
        raise Invalid("bad-rule", "A grace lasts from nothing to 3650 days.")
    campaign = rules.renewal.campaign
    if campaign is not None and not timedelta(0) <= campaign.spread <= SPREAD_MAX:
        raise Invalid("bad-rule", "A campaign is spread over nothing to 365 days.")
    _check_mqtt(rules.mqtt)
    if len(rules.http.allow) > RULES_MAX:
        raise Invalid("bad-rule", f"A model has at most {RULES_MAX} rules for HTTP requests.")
    for rule in rules.http.allow:
        http_rule(rule)
    return rules


def _check_mqtt(rules: MqttRules) -> None:
    if not 0 <= rules.messages_per_second <= RATE_MAX:
        raise Invalid("bad-rule", f"Messages per second are 0, for no limit, to {RATE_MAX}.")
    if rules.bytes_per_second and not BYTES_PER_SECOND_MIN <= rules.bytes_per_second <= RATE_MAX:
        raise Invalid("bad-rule", f"Bytes per second are 0, for no limit, or {BYTES_PER_SECOND_MIN} to {RATE_MAX}.")
    if not BURST_MIN <= rules.burst <= BURST_MAX:
        raise Invalid("bad-rule", "A burst lasts from one second to an hour.")
    if not 0 <= rules.subscriptions_max <= FILTERS_PER_DEVICE_MAX:
        raise Invalid(
            "bad-rule",
            f"The subscriptions must be 0, for the limit of fleet.toml, or 1 to {FILTERS_PER_DEVICE_MAX}.",
        )
    if rules.packet_size_max and not PACKET_SIZE_MIN <= rules.packet_size_max <= PACKET_SIZE_MAX:
        what = "The packet size must be 0, for the limit of fleet.toml, or"
        raise Invalid("bad-rule", f"{what} {PACKET_SIZE_MIN} to {PACKET_SIZE_MAX} bytes.")


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
    if len(rules.uris) > URI_NAMES_MAX:
        raise Invalid("bad-rule", f"A certificate takes at most {URI_NAMES_MAX} URIs.")
    for uri in rules.uris:
        check_uri_template(uri)
    for template in filter(None, (rules.email, rules.upn)):
        check_user_template(template)


def _check_service(rules: ModelRules) -> None:
    if not rules.profile.service:
        return
    if rules.admission.paths != (AdmissionPath.APPROVAL,):
        raise Invalid(
            "bad-rule",
            "A service's certificate needs an operator's approval.",
            "Admit by approval alone: --admit approval",
        )
    if "{id}" not in rules.profile.dns_name:
        raise Invalid("bad-rule", "A service's certificate needs a DNS name of its own.", "Give one with {id}.")
