"""The options of `fleet model add` and `set`, declared once for both."""

import functools
import inspect
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, get_args, get_origin

import click

from fleet.cli.parameters import CERTIFICATE_LIFETIME, DURATION, size_in_bytes, size_text
from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX
from fleet.domain.device import KEY_TYPES, Model
from fleet.domain.model_rules import CERTIFICATES_PER_DAY_MAX, EXTENDED_KEY_USAGES, ModelKind, ModelRules, member_kinds
from fleet.domain.mqtt_rules import PACKET_SIZE_MIN, QOS_MAX, RATE_MAX, SESSIONS_MAX

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _option(flags: str, name: str, help_: str, **more: Any) -> _Decorator:
    """The option for a member of the API's model: `name` is the path of that, with __ in between. How it is given
    follows from the type that the member has in the domain, unless `more` says it.
    """
    *groups, member = name.split("__")
    kinds = member_kinds(Model) | member_kinds(ModelRules)
    for group in groups:
        kinds = member_kinds(kinds[group])
    return click.option(flags, name, help=help_, **_given_as(kinds[member]) | more)


def _given_as(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is tuple:
        return {"multiple": True, **_given_as(get_args(kind)[0])}
    if kind is timedelta:
        return {"type": DURATION, "metavar": "DURATION"}
    if kind is bool:
        return {"default": None}
    return {"type": click.Choice([each.value for each in kind])} if issubclass(kind, StrEnum) else {}


_KEYS_AND_FILTERS = (
    _option(
        "--key-type", "key_types", "A key type that its devices may use; may be repeated.", type=click.Choice(KEY_TYPES)
    ),
    _option(
        "--publish",
        "publish",
        "A topic filter that its devices may publish to; {id}, {model}, {tenant} and {tag:KEY} stand for their own. "
        "May be repeated.",
        metavar="FILTER",
    ),
    _option(
        "--subscribe",
        "subscribe",
        "A topic filter that its devices may subscribe to. May be repeated.",
        metavar="FILTER",
    ),
)
_APPLICATION = click.option(
    "--application",
    "kind",
    flag_value=ModelKind.APPLICATION.value,
    default=None,
    help="For back-end applications. Default then: --subscribe 'devices/+/up/#' --publish 'devices/+/down/#' --admit "
    "token. It stays so.",
)
_LIMITS = (
    _option(
        "--max-qos",
        "mqtt__qos_max",
        "Highest QoS of its messages, and of what it subscribes to. A PUBLISH above it ends an MQTT 5.0 session "
        "(0x9B), and is treated as --on-denied says in 3.1.1; a subscription is granted that QoS at most.",
        type=click.IntRange(0, QOS_MAX),
    ),
    _option(
        "--shared-subscriptions/--no-shared-subscriptions",
        "mqtt__shared_subscriptions",
        "Whether a device may subscribe to $share/GROUP/FILTER. Default: yes.",
    ),
    _option(
        "--messages-per-second",
        "mqtt__messages_per_second",
        "MQTT packets that a device may send on average; 0: no limit.",
        type=click.IntRange(0, RATE_MAX),
    ),
    _option(
        "--bytes-per-second",
        "mqtt__bytes_per_second",
        "Bytes that a device may send on average, as 65536 or 64KiB; 0: no limit.",
        metavar="BYTES",
        type=size_in_bytes(RATE_MAX),
    ),
    _option(
        "--max-subscriptions",
        "mqtt__subscriptions_max",
        "Topic filters of a device, if fewer than fleet.toml allows (filters_per_device_max); 0: its limit.",
        type=click.IntRange(0, FILTERS_PER_DEVICE_MAX),
    ),
    _option(
        "--max-packet-size",
        "mqtt__packet_size_max",
        f"Bytes of an MQTT packet of a device, as 65536 or 64KiB, at least {size_text(PACKET_SIZE_MIN)}, if fewer "
        "than fleet.toml allows (packet_size_max); 0: its limit.",
        metavar="BYTES",
        type=size_in_bytes(PACKET_SIZE_MAX),
    ),
)
_SESSIONS = (
    _option(
        "--on-denied",
        "mqtt__on_denied",
        "What an MQTT 3.1.1 device gets for a message on a topic that it may not publish to: an acknowledgement, "
        "and the message is dropped (default), or a closed connection.",
    ),
    _option(
        "--client-id",
        "mqtt__client_id",
        "Client ids of a device: its id alone (exact, the default), also names beneath it, as cam-7/bridge, for "
        "several sessions at once (prefix), or any.",
    ),
    _option(
        "--max-sessions",
        "mqtt__sessions_max",
        "Client ids that a device may have sessions of, where they are not exact. Default: 4.",
        type=click.IntRange(1, SESSIONS_MAX),
    ),
)
"""Of MQTT, like the limits: an override by a tag may say otherwise."""
_END_FORMER_TENANTS = click.option(
    "--end-former-tenants",
    "former_tenants",
    flag_value=[],
    default=None,
    type=click.UNPROCESSED,
    help="Refuse certificates issued by former tenants at once; else they stay valid until renewed or expired.",
)
_RULES = (
    _option(
        "--tenant", "tenant", "Tenant whose issuing CA signs its certificates; '' for the fleet's own.", metavar="NAME"
    ),
    _option(
        "--admit",
        "admission__paths",
        "An admission path for its devices; may be repeated: those given replace all. Default: token and station. With "
        "approval, an unauthenticated device may request a certificate, and waits for an operator: fleet request.",
    ),
    _option(
        "--any-idevid/--listed-idevid",
        "admission__any_idevid",
        "Accept any certificate of the manufacturer, or only devices listed on the manifest (default).",
    ),
    _option(
        "--webhook",
        "admission__webhook",
        "An https URL that authorizes each first certificate: anything but a clear yes refuses it; '' for none. "
        "See: fleet webhook --help",
        metavar="URL",
    ),
    _option(
        "--eku",
        "profile__extended_key_usages",
        "An extended key usage of its certificates; may be repeated. Default: clientAuth, which is required.",
        type=click.Choice(list(EXTENDED_KEY_USAGES)),
    ),
    _option("--organisation", "profile__organisation", "O of the subject; '' for none.", metavar="TEXT"),
    _option(
        "--hw-module-name/--no-hw-module-name",
        "profile__hardware_module_name",
        "Whether a known hardware serial is put into the SAN (IEEE 802.1AR). Default: yes.",
    ),
    _option(
        "--dns-name", "profile__dns_name", "A DNS name for the SAN: {id}.example.com; '' for none.", metavar="TEMPLATE"
    ),
    _option("--uri", "profile__uris", "A URI for the SAN: urn:x:{id}. May be repeated.", metavar="TEMPLATE"),
    _option(
        "--email", "profile__email", "A mail address for the SAN: {id}@example.com; '' for none.", metavar="TEMPLATE"
    ),
    _option(
        "--upn",
        "profile__upn",
        "A user principal name for the SAN, as RADIUS servers read it: {id}@corp.example; '' for none.",
        metavar="TEMPLATE",
    ),
    _option(
        "--service/--no-service",
        "profile__service",
        "Whether its certificates are good for a server too (serverAuth), under their --dns-name with {id}. An "
        "operator approves each: --admit approval alone.",
    ),
    _option(
        "--csr-eku/--no-csr-eku",
        "profile__csr_extended_key_usages",
        "Whether a CSR may request a subset of its extended key usages.",
    ),
    _option(
        "--cdp/--no-cdp",
        "profile__cdp",
        "Whether its certificates name their CRL, where [publish] url is set. Default: yes.",
    ),
    _option(
        "--aia/--no-aia",
        "profile__aia",
        "Whether its certificates name the OCSP responder and the CA's certificate, likewise. Default: yes.",
    ),
    _option(
        "--server-keygen/--no-server-keygen",
        "profile__server_keygen",
        "Whether the server generates keys for its devices on request (serverkeygen).",
    ),
    _option(
        "--binding/--no-binding",
        "profile__binding",
        "Whether requests must be bound to their TLS connection (RFC 7030, 3.5).",
    ),
    _option("--renewal-key", "renewal__key", "Which key a renewal must be for."),
    _option(
        "--grace",
        "renewal__grace_seconds",
        "How long after expiry a certificate may still be renewed by its own device, and used for nothing else.",
    ),
    _option(
        "--certificates-per-day",
        "renewal__certificates_per_day",
        "Certificates that a device may get in a day, or in a lifetime if that is shorter; 0: no limit. Default: 24.",
        type=click.IntRange(0, CERTIFICATES_PER_DAY_MAX),
    ),
    *_LIMITS,
    _option(
        "--burst",
        "mqtt__burst_seconds",
        "How much a device may send at once after a rest: what the two rates allow in that time.",
    ),
    *_SESSIONS,
    _option(
        "--check-response-topic/--no-check-response-topic",
        "mqtt__check_response_topic",
        "Whether a device may ask for a response (MQTT 5.0) only on topics that it may subscribe to.",
    ),
    _option(
        "--http-allow",
        "http__allow",
        "An HTTP request that a proxy may pass on from its devices (forward_auth in fleet.toml): methods and a "
        "path, 'GET,HEAD /v1/devices/{id}/**'. May be repeated; all others are denied then. '* /**': any request.",
        metavar="RULE",
    ),
)


def _retain_option(retain: bool | None) -> _Decorator:
    return click.option(
        "--retain/--no-retain",
        default=retain,
        show_default=True,
        help="Whether its devices may publish retained messages, which the broker keeps.",
    )


def model_options(lifetime: str | None, retain: bool | None, *, is_new: bool) -> _Decorator:
    """Give a command the options, with these defaults, gathered as `changes`: what was said, as the API takes it.

    A new model has no former tenants to end, and chooses its kind.
    """
    options: tuple[_Decorator, ...] = (
        click.option(
            "--lifetime",
            "lifetime_seconds",
            type=CERTIFICATE_LIFETIME,
            default=lifetime,
            show_default=True,
            help="Certificate lifetime: 12h, 30d.",
        ),
        *_KEYS_AND_FILTERS,
        _retain_option(retain),
        *_RULES,
        _APPLICATION if is_new else _END_FORMER_TENANTS,
    )
    return _gathered(options)


def override_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command those options that an override has, gathered likewise."""
    _, *filters = _KEYS_AND_FILTERS
    return _gathered((*filters, _retain_option(None), *_LIMITS, *_SESSIONS))(command)


def _gathered(options: Sequence[_Decorator]) -> _Decorator:
    def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command).parameters

        @functools.wraps(command)
        def gathering(**given: Any) -> Any:
            changes: dict[str, Any] = {}
            for parameter, value in given.items():
                if parameter not in own and value is not None and value != ():
                    group, _, key = parameter.rpartition("__")
                    said = int(value.total_seconds()) if isinstance(value, timedelta) else value
                    (changes.setdefault(group, {}) if group else changes)[key] = said
            return command(changes=changes, **{name: value for name, value in given.items() if name in own})

        made: Callable[..., Any] = gathering
        for option in reversed(options):
            made = option(made)
        return made

    return with_options
