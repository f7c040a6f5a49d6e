"""Models: what their devices' certificates hold, by which paths devices enroll, which topics they may use."""

from datetime import timedelta
from typing import Annotated, Any, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX
from fleet.config.timestamps import rfc3339
from fleet.domain import device as domain
from fleet.domain.http_policy import RULE_SIZE_MAX, RULES_MAX
from fleet.domain.model_rules import (
    BURST_MAX,
    BURST_MIN,
    BYTES_PER_SECOND_MIN,
    EXTENDED_KEY_USAGES,
    FORMER_TENANTS_MAX,
    GRACE_MAX,
    ORGANISATION_SIZE_MAX,
    PACKET_SIZE_MIN,
    RATE_MAX,
    SPREAD_MAX,
    URI_NAMES_MAX,
    WEBHOOK_URL_SIZE_MAX,
    AdmissionPath,
    OnDenied,
    RenewalKey,
    rules_json,
    rules_of,
)
from fleet.domain.name_templates import TEMPLATE_SIZE_MAX
from fleet.domain.topic_policy import FILTERS_MAX
from fleet.servers.admin.records.base import (
    Changes,
    Count,
    Name,
    Record,
    TimeText,
    about,
    at_most,
    check_times,
    choice,
    pattern,
    seconds,
)
from fleet.services.renewal import Progress

Lifetime = Annotated[int, seconds(domain.LIFETIME_MIN, domain.LIFETIME_MAX, "Validity period of a certificate.")]
NO_TIME = timedelta(0)
_KeyTypes = Annotated[list[Annotated[str, choice(domain.KEY_TYPES)]], Meta(min_length=1)]
_Filters = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=1024)]],
    at_most(FILTERS_MAX, "MQTT topic filters; {id} and {model} are the device's own."),
]
_TENANT = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?\Z"
_Tenant = Annotated[str, pattern(_TENANT, "Tenant whose issuing CA signs; empty for the fleet's own.")]
_FormerTenants = Annotated[
    list[Annotated[str, pattern(_TENANT)]],
    at_most(
        FORMER_TENANTS_MAX, "Tenants whose certificates are still valid for its devices; a move adds the previous one."
    ),
]
_Webhook = Annotated[str, at_most(WEBHOOK_URL_SIZE_MAX, "https URL asked before each first certificate.")]
_Usages = Annotated[
    list[Annotated[str, choice(EXTENDED_KEY_USAGES)]],
    Meta(min_length=1, description="clientAuth is always among them."),
]
_Organisation = Annotated[str, at_most(ORGANISATION_SIZE_MAX, "O of the subject.")]
_DnsName = Annotated[str, at_most(TEMPLATE_SIZE_MAX, "DNS name in the SAN; {id}, {model} are filled.")]
_Uri = Annotated[str, at_most(TEMPLATE_SIZE_MAX, "{id} and {model} are filled in.")]
_Email = Annotated[str, at_most(TEMPLATE_SIZE_MAX, "Mail address in the SAN; {id} and {model} are filled in.")]
_UserPrincipalName = Annotated[str, at_most(TEMPLATE_SIZE_MAX, "User principal name in the SAN: USER@REALM; likewise.")]
_Uris = Annotated[list[_Uri], at_most(URI_NAMES_MAX, "URIs in the SAN.")]
_Grace = Annotated[
    int,
    seconds(NO_TIME, GRACE_MAX, "How long after notAfter a certificate may still be renewed, and nothing else."),
]


class Campaign(Record):
    """A renewal campaign: certificates issued before `before` are renewed within `spread_seconds` of `start`."""

    before: TimeText
    start: TimeText
    spread_seconds: Annotated[int, seconds(NO_TIME, SPREAD_MAX)]

    def __post_init__(self) -> None:
        check_times(self, "before", "start")


class AdmissionRules(Record):
    """How devices earn a first certificate."""

    paths: list[AdmissionPath] | UnsetType = UNSET
    any_idevid: Annotated[
        bool | UnsetType, about("Whether any device of a trust anchor may enroll, on the manifest or not.")
    ] = UNSET
    webhook: _Webhook | UnsetType = UNSET


class ProfileRules(Record):
    """What certificates hold beside the device id."""

    extended_key_usages: _Usages | UnsetType = UNSET
    organisation: _Organisation | UnsetType = UNSET
    hardware_module_name: Annotated[
        bool | UnsetType, about("Whether the SAN holds a known hardware serial (IEEE 802.1AR).")
    ] = UNSET
    dns_name: _DnsName | UnsetType = UNSET
    uris: _Uris | UnsetType = UNSET
    email: _Email | UnsetType = UNSET
    upn: _UserPrincipalName | UnsetType = UNSET
    service: Annotated[
        bool | UnsetType,
        about("Whether certificates are good for a server too, under their DNS name; each needs an approval."),
    ] = UNSET
    csr_extended_key_usages: Annotated[
        bool | UnsetType, about("Whether a CSR may ask for fewer of the extended key usages.")
    ] = UNSET
    cdp: Annotated[bool | UnsetType, about("Whether certificates name their CRL, where the CA publishes one.")] = UNSET
    aia: Annotated[
        bool | UnsetType, about("Whether certificates name the OCSP responder and the CA's certificate, likewise.")
    ] = UNSET
    server_keygen: Annotated[bool | UnsetType, about("Server-side key generation (RFC 7030, 4.4).")] = UNSET
    binding: Annotated[bool | UnsetType, about("Whether requests must carry the channel binding (RFC 7030, 3.5).")] = (
        UNSET
    )


_Messages = Annotated[
    int, Meta(ge=0, le=RATE_MAX, description="MQTT packets that a device may send on average; 0 for no limit.")
]
_Bytes = Annotated[
    int,
    Meta(
        ge=0,
        le=RATE_MAX,
        description=f"Bytes that a device may send on average; 0 for no limit, else at least {BYTES_PER_SECOND_MIN}.",
    ),
]
_Subscriptions = Annotated[
    int,
    Meta(
        ge=0,
        le=FILTERS_PER_DEVICE_MAX,
        description="Topic filters of a device, if fewer than fleet.toml allows; else 0.",
    ),
]
_PacketSize = Annotated[
    int,
    Meta(
        ge=0,
        le=PACKET_SIZE_MAX,
        description="Bytes of an MQTT packet of a device, if fewer than fleet.toml allows: at least "
        f"{PACKET_SIZE_MIN}; else 0.",
    ),
]
_Burst = Annotated[
    int,
    seconds(BURST_MIN, BURST_MAX, "What a device may send at once after a rest: what the rates allow in that time."),
]


class RenewalRules(Record):
    """How devices renew."""

    key: Annotated[RenewalKey | UnsetType, about("Which key a renewal must be for.")] = UNSET
    grace_seconds: _Grace | UnsetType = UNSET
    campaign: Campaign | UnsetType | None = UNSET


class MqttRules(Record):
    """How MQTT sessions are treated."""

    on_denied: Annotated[
        OnDenied | UnsetType,
        about("MQTT 3.1.1 only: whether a denied PUBLISH is acknowledged and dropped, or closes the connection."),
    ] = UNSET
    messages_per_second: _Messages | UnsetType = UNSET
    bytes_per_second: _Bytes | UnsetType = UNSET
    burst_seconds: _Burst | UnsetType = UNSET
    check_response_topic: Annotated[
        bool | UnsetType,
        about("Whether a Response Topic (MQTT 5.0) must be one that the device may subscribe to."),
    ] = UNSET
    subscriptions_max: _Subscriptions | UnsetType = UNSET
    packet_size_max: _PacketSize | UnsetType = UNSET


_HttpRule = Annotated[
    str, at_most(RULE_SIZE_MAX, "Methods and a path: `GET,HEAD /v1/devices/{id}/**`; * is any method, or one segment.")
]


class HttpRules(Record):
    """Which HTTP requests a reverse proxy that asks us may pass on."""

    allow: Annotated[list[_HttpRule], at_most(RULES_MAX, "With none, every request is allowed.")] | UnsetType = UNSET


class _Members(Record):
    """What may be said of a model."""

    lifetime_seconds: Lifetime | UnsetType = UNSET
    key_types: _KeyTypes | UnsetType = UNSET
    publish: _Filters | UnsetType = UNSET
    subscribe: _Filters | UnsetType = UNSET
    retain: Annotated[bool | UnsetType, about("Whether devices may publish retained messages.")] = UNSET
    tenant: _Tenant | UnsetType = UNSET
    former_tenants: _FormerTenants | UnsetType = UNSET
    admission: AdmissionRules | UnsetType = UNSET
    profile: ProfileRules | UnsetType = UNSET
    renewal: RenewalRules | UnsetType = UNSET
    mqtt: MqttRules | UnsetType = UNSET
    http: HttpRules | UnsetType = UNSET

    def applied(self, model: domain.Model) -> domain.Model:
        """`model` with these members; those that are not given are as in `model`. Raises: Invalid (`bad-rule`)."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        changed: dict[str, Any] = {name: tuple(given[name]) for name in _TOPICS_AND_KEYS if name in given}
        if "retain" in given:
            changed["retain"] = given["retain"]
        if "lifetime_seconds" in given:
            changed["certificate_lifetime"] = timedelta(seconds=given["lifetime_seconds"])
        rules = {name: given[name] for name in _RULES if name in given}
        return replace(model, rules=rules_of(rules, model.rules), **changed)


_TOPICS_AND_KEYS = ("key_types", "publish", "subscribe")
_RULES = ("tenant", "former_tenants", "admission", "profile", "renewal", "mqtt", "http")


class NewModel(_Members, kw_only=True):
    """A model to add."""

    name: Name


class ModelReplacement(_Members):
    """A whole model; what is left out is as in a new one."""


class ModelChanges(_Members, Changes):
    """A merge patch (RFC 7396): what is not in it stays as it is."""


class Model(Record):
    """A kind of device."""

    name: Name
    lifetime_seconds: Lifetime
    key_types: _KeyTypes
    publish: _Filters
    subscribe: _Filters
    retain: Annotated[bool, about("Whether devices may publish retained messages.")]
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
