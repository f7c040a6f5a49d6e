"""The options of `fleet model add` and `set`, declared once for both."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from fleet.cli.durations import CERTIFICATE_LIFETIME, DURATION
from fleet.cli.sizes import size_in_bytes, size_text
from fleet.client.client import Client
from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX
from fleet.domain.device import KEY_TYPES
from fleet.domain.model_rules import (
    EXTENDED_KEY_USAGES,
    PACKET_SIZE_MIN,
    RATE_MAX,
    AdmissionPath,
    OnDenied,
    RenewalKey,
)

# A parameter's name is the path of its value in the API's model, with __ in between.
_KEYS_AND_FILTERS = (
    click.option(
        "--key-type",
        "key_types",
        multiple=True,
        type=click.Choice(KEY_TYPES),
        help="A key type that its devices may use; may be repeated.",
    ),
    click.option(
        "--publish",
        multiple=True,
        metavar="FILTER",
        help="A topic filter that its devices may publish to; {id} and {model} stand for their own. May be repeated.",
    ),
    click.option(
        "--subscribe",
        multiple=True,
        metavar="FILTER",
        help="A topic filter that its devices may subscribe to. May be repeated.",
    ),
)
_END_FORMER_TENANTS = click.option(
    "--end-former-tenants",
    "former_tenants",
    flag_value=[],
    default=None,
    type=click.UNPROCESSED,
    help="Refuse certificates issued by former tenants at once; else they stay valid until renewed or expired.",
)
_RULES = (
    click.option(
        "--tenant", metavar="NAME", help="Tenant whose issuing CA signs its certificates; '' for the fleet's own."
    ),
    click.option(
        "--admit",
        "admission__paths",
        multiple=True,
        type=click.Choice([path.value for path in AdmissionPath]),
        help="An admission path for its devices; may be repeated. Default: token and station. With approval, an "
        "unauthenticated device may request a certificate, and waits for an operator: fleet request.",
    ),
    click.option(
        "--any-idevid/--listed-idevid",
        "admission__any_idevid",
        default=None,
        help="Accept any certificate of the manufacturer, or only devices listed on the manifest (default).",
    ),
    click.option(
        "--webhook",
        "admission__webhook",
        metavar="URL",
        help="An https URL that authorizes each first certificate: anything but a clear yes refuses it; '' for none. "
        "See: fleet webhook --help",
    ),
    click.option(
        "--eku",
        "profile__extended_key_usages",
        multiple=True,
        type=click.Choice(list(EXTENDED_KEY_USAGES)),
        help="An extended key usage of its certificates; may be repeated. Default: clientAuth, which is required.",
    ),
    click.option("--organisation", "profile__organisation", metavar="TEXT", help="O of the subject; '' for none."),
    click.option(
        "--hw-module-name/--no-hw-module-name",
        "profile__hardware_module_name",
        default=None,
        help="Whether a known hardware serial is put into the SAN (IEEE 802.1AR). Default: yes.",
    ),
    click.option(
        "--dns-name",
        "profile__dns_name",
        metavar="TEMPLATE",
        help="A DNS name for the SAN: {id}.example.com; '' for none.",
    ),
    click.option(
        "--uri",
        "profile__uris",
        multiple=True,
        metavar="TEMPLATE",
        help="A URI for the SAN: urn:x:{id}. May be repeated.",
    ),
    click.option(
        "--email",
        "profile__email",
        metavar="TEMPLATE",
        help="A mail address for the SAN: {id}@example.com; '' for none.",
    ),
    click.option(
        "--upn",
        "profile__upn",
        metavar="TEMPLATE",
        help="A user principal name for the SAN, as RADIUS servers read it: {id}@corp.example; '' for none.",
    ),
    click.option(
        "--service/--no-service",
        "profile__service",
        default=None,
        help="Whether its certificates are good for a server too (serverAuth), under their --dns-name with {id}. An "
        "operator approves each: --admit approval alone.",
    ),
    click.option(
        "--csr-eku/--no-csr-eku",
        "profile__csr_extended_key_usages",
        default=None,
        help="Whether a CSR may request a subset of its extended key usages.",
    ),
    click.option(
        "--cdp/--no-cdp",
        "profile__cdp",
        default=None,
        help="Whether its certificates name their CRL, where [publish] url is set. Default: yes.",
    ),
    click.option(
        "--aia/--no-aia",
        "profile__aia",
        default=None,
        help="Whether its certificates name the OCSP responder and the CA's certificate, likewise. Default: yes.",
    ),
    click.option(
        "--server-keygen/--no-server-keygen",
        "profile__server_keygen",
        default=None,
        help="Whether the server generates keys for its devices on request (serverkeygen).",
    ),
    click.option(
        "--binding/--no-binding",
        "profile__binding",
        default=None,
        help="Whether requests must be bound to their TLS connection (RFC 7030, 3.5).",
    ),
    click.option(
        "--renewal-key",
        "renewal__key",
        type=click.Choice([key.value for key in RenewalKey]),
        help="Which key a renewal must be for.",
    ),
    click.option(
        "--grace",
        "renewal__grace_seconds",
        type=DURATION,
        metavar="DURATION",
        help="How long after expiry a certificate may still be renewed by its own device, and used for nothing else.",
    ),
    click.option(
        "--on-denied",
        "mqtt__on_denied",
        type=click.Choice([each.value for each in OnDenied]),
        help="What an MQTT 3.1.1 device gets for a message on a topic that it may not publish to: an acknowledgement, "
        "and the message is dropped (default), or a closed connection.",
    ),
    click.option(
        "--messages-per-second",
        "mqtt__messages_per_second",
        type=click.IntRange(0, RATE_MAX),
        help="MQTT packets that a device may send on average; 0: no limit.",
    ),
    click.option(
        "--bytes-per-second",
        "mqtt__bytes_per_second",
        type=size_in_bytes(RATE_MAX),
        metavar="BYTES",
        help="Bytes that a device may send on average, as 65536 or 64KiB; 0: no limit.",
    ),
    click.option(
        "--burst",
        "mqtt__burst_seconds",
        type=DURATION,
        metavar="DURATION",
        help="How much a device may send at once after a rest: what the two rates allow in that time.",
    ),
    click.option(
        "--max-subscriptions",
        "mqtt__subscriptions_max",
        type=click.IntRange(0, FILTERS_PER_DEVICE_MAX),
        help="Topic filters of a device, if fewer than fleet.toml allows (filters_per_device_max); 0: its limit.",
    ),
    click.option(
        "--max-packet-size",
        "mqtt__packet_size_max",
        type=size_in_bytes(PACKET_SIZE_MAX),
        metavar="BYTES",
        help=f"Bytes of an MQTT packet of a device, as 65536 or 64KiB, at least {size_text(PACKET_SIZE_MIN)}, if fewer "
        "than fleet.toml allows (packet_size_max); 0: its limit.",
    ),
    click.option(
        "--check-response-topic/--no-check-response-topic",
        "mqtt__check_response_topic",
        default=None,
        help="Whether a device may ask for a response (MQTT 5.0) only on topics that it may subscribe to.",
    ),
    click.option(
        "--http-allow",
        "http__allow",
        multiple=True,
        metavar="RULE",
        help="An HTTP request that a proxy may pass on from its devices (forward_auth in fleet.toml): methods and a "
        "path, 'GET,HEAD /v1/devices/{id}/**'. May be repeated; all others are denied then. '* /**': any request.",
    ),
)


def model_options(
    lifetime: str | None, retain: bool | None, *, is_new: bool
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options, with these defaults, gathered as `changes`: what was said, as the API takes it.

    A new model has no former tenants to end.
    """
    options = (
        click.option(
            "--lifetime",
            "lifetime_seconds",
            type=CERTIFICATE_LIFETIME,
            default=lifetime,
            show_default=True,
            help="Certificate lifetime: 12h, 30d.",
        ),
        *_KEYS_AND_FILTERS,
        click.option(
            "--retain/--no-retain",
            default=retain,
            show_default=True,
            help="Whether its devices may publish retained messages, which the broker keeps.",
        ),
        *_RULES,
        *(() if is_new else (_END_FORMER_TENANTS,)),
    )

    def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathering(client: Client, name: str, output: str, **given: Any) -> Any:
            changes: dict[str, Any] = {}
            for parameter, value in given.items():
                if value is not None and value != ():
                    group, _, key = parameter.rpartition("__")
                    said = int(value.total_seconds()) if isinstance(value, timedelta) else value
                    (changes.setdefault(group, {}) if group else changes)[key] = said
            return command(client=client, name=name, changes=changes, output=output)

        for option in reversed(options):
            gathering = option(gathering)
        return gathering

    return with_options
