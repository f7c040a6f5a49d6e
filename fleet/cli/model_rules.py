"""The options of `fleet model add` and `set` that make up a model's rules, declared once for both."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from fleet.cli.durations import DURATION
from fleet.domain.model_rules import EXTENDED_KEY_USAGES, AdmissionPath, RenewalKey

# parameter -> where its value stands in fleet.domain.model_rules.rules_json
_PLACES: dict[str, tuple[str, ...]] = {
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
    click.option("--tenant", metavar="NAME", help="Whose issuing CA signs its certificates; '' for the fleet's own."),
    click.option(
        "--end-former-tenants",
        "former_tenants",
        flag_value=[],
        default=None,
        type=click.UNPROCESSED,
        help="Refuse from now on what the tenants before signed; without, it is good until renewed or expired.",
    ),
    click.option(
        "--admit",
        multiple=True,
        type=click.Choice([path.value for path in AdmissionPath]),
        help="A way in which its devices may come in; may be repeated. Usual: token and station. With approval, a "
        "device that shows nothing may ask, and waits for an operator: fleet request.",
    ),
    click.option(
        "--any-idevid/--listed-idevid",
        default=None,
        help="Whether a maker's certificate is enough by itself, or its device must be on the manifest (usual).",
    ),
    click.option(
        "--webhook",
        metavar="URL",
        help="An https URL to ask before each first certificate: what is not a clear yes is a no; '' for none. "
        "See: fleet webhook --help",
    ),
    click.option(
        "--eku",
        "extended_key_usages",
        multiple=True,
        type=click.Choice(list(EXTENDED_KEY_USAGES)),
        help="What its certificates are good for; may be repeated. Usual: clientAuth, which is always needed.",
    ),
    click.option("--organisation", metavar="TEXT", help="O of the subject; '' for none."),
    click.option(
        "--hw-module-name/--no-hw-module-name",
        "hardware_module_name",
        default=None,
        help="Whether a known hardware serial stands in the SAN (IEEE 802.1AR); usually it does.",
    ),
    click.option("--dns-name", metavar="TEMPLATE", help="A DNS name for the SAN: {id}.example.com; '' for none."),
    click.option(
        "--uri", "uris", multiple=True, metavar="TEMPLATE", help="A URI for the SAN: urn:x:{id}. May be repeated."
    ),
    click.option(
        "--csr-eku/--no-csr-eku",
        "csr_extended_key_usages",
        default=None,
        help="Whether a CSR may ask for some of its extended key usages instead of getting all.",
    ),
    click.option(
        "--server-keygen/--no-server-keygen",
        default=None,
        help="Whether the server makes keys for its devices on request.",
    ),
    click.option(
        "--binding/--no-binding",
        default=None,
        help="Whether a request must bind itself to its TLS connection (RFC 7030, 3.5).",
    ),
    click.option(
        "--renewal-key", type=click.Choice([key.value for key in RenewalKey]), help="Which key a renewal must be for."
    ),
    click.option(
        "--grace",
        type=DURATION,
        metavar="DURATION",
        help="How long after its end a certificate may still be renewed by its own device, and do nothing else.",
    ),
)


def rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` the options, gathered as `rules`, in the shape of rules_json: only what was said."""

    @functools.wraps(command)
    def gathering(*args: Any, **given: Any) -> Any:
        rules: dict[str, Any] = {}
        for parameter, place in _PLACES.items():
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
