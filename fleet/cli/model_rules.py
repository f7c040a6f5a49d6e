"""The options of `fleet model add` and `set` that make up a model's rules, declared once for both."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from fleet.cli.durations import DURATION
from fleet.domain.model_rules import EXTENDED_KEY_USAGES, AdmissionPath, RenewalKey

# parameter -> path of its value in fleet.domain.model_rules.rules_json
_PATHS: dict[str, tuple[str, ...]] = {
    "tenant": ("tenant",),
    "former_tenants": ("former_tenants",),
    "admit": ("admission", "paths"),
    "any_idevid": ("admission", "any_idevid"),
    "webhook": ("admission", "webhook"),
    "extended_key_usages": ("profile", "extended_key_usages"),
    "organisation": ("profile", "organisation"),
    "hardware_module_name": ("profile", "hardware_module_name"),
    "dns_name": ("profile", "dns_name"),
    "uris": ("profile", "uris"),
    "csr_extended_key_usages": ("profile", "csr_extended_key_usages"),
    "server_keygen": ("profile", "server_keygen"),
    "binding": ("profile", "binding"),
    "renewal_key": ("renewal", "key"),
    "grace": ("renewal", "grace_seconds"),
}

_OPTIONS = (
    click.option(
        "--tenant", metavar="NAME", help="Tenant whose issuing CA signs its certificates; '' for the fleet's own."
    ),
    click.option(
        "--end-former-tenants",
        "former_tenants",
        flag_value=[],
        default=None,
        type=click.UNPROCESSED,
        help="Refuse certificates issued by former tenants at once; else they stay valid until renewed or expired.",
    ),
    click.option(
        "--admit",
        multiple=True,
        type=click.Choice([path.value for path in AdmissionPath]),
        help="An admission path for its devices; may be repeated. Default: token and station. With approval, an "
        "unauthenticated device may request a certificate, and waits for an operator: fleet request.",
    ),
    click.option(
        "--any-idevid/--listed-idevid",
        default=None,
        help="Accept any certificate of the manufacturer, or only devices listed on the manifest (default).",
    ),
    click.option(
        "--webhook",
        metavar="URL",
        help="An https URL that authorises each first certificate: anything but a clear yes refuses it; '' for none. "
        "See: fleet webhook --help",
    ),
    click.option(
        "--eku",
        "extended_key_usages",
        multiple=True,
        type=click.Choice(list(EXTENDED_KEY_USAGES)),
        help="An extended key usage of its certificates; may be repeated. Default: clientAuth, which is required.",
    ),
    click.option("--organisation", metavar="TEXT", help="O of the subject; '' for none."),
    click.option(
        "--hw-module-name/--no-hw-module-name",
        "hardware_module_name",
        default=None,
        help="Whether a known hardware serial is put into the SAN (IEEE 802.1AR). Default: yes.",
    ),
    click.option("--dns-name", metavar="TEMPLATE", help="A DNS name for the SAN: {id}.example.com; '' for none."),
    click.option(
        "--uri", "uris", multiple=True, metavar="TEMPLATE", help="A URI for the SAN: urn:x:{id}. May be repeated."
    ),
    click.option(
        "--csr-eku/--no-csr-eku",
        "csr_extended_key_usages",
        default=None,
        help="Whether a CSR may request a subset of its extended key usages.",
    ),
    click.option(
        "--server-keygen/--no-server-keygen",
        default=None,
        help="Whether the server generates keys for its devices on request (serverkeygen).",
    ),
    click.option(
        "--binding/--no-binding",
        default=None,
        help="Whether requests must be bound to their TLS connection (RFC 7030, 3.5).",
    ),
    click.option(
        "--renewal-key", type=click.Choice([key.value for key in RenewalKey]), help="Which key a renewal must be for."
    ),
    click.option(
        "--grace",
        type=DURATION,
        metavar="DURATION",
        help="How long after expiry a certificate may still be renewed by its own device, and used for nothing else.",
    ),
)


def rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` the options, gathered as `rules`, in the shape of rules_json: only what was said."""

    @functools.wraps(command)
    def gathering(*args: Any, **given: Any) -> Any:
        rules: dict[str, Any] = {}
        for parameter, place in _PATHS.items():
            value = given.pop(parameter)
            if value is None or value == ():
                continue
            value = int(value.total_seconds()) if isinstance(value, timedelta) else value
            group = rules.setdefault(place[0], {}) if len(place) == 2 else rules
            group[place[-1]] = value
        return command(*args, rules=rules, **given)

    for option in reversed(_OPTIONS):
        gathering = option(gathering)
    return gathering
