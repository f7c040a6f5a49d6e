"""Name templates: DNS names and URIs of certificates, with the device's {id} and {model} filled in.

Two devices must never get the same name: an enrollee could otherwise choose an id that yields another device's name.
DNS is case-insensitive and dots are significant, so a value in a host must consist of lower-case letters, digits and
dashes.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from fleet.domain.errors import Invalid, Refused

TEMPLATE_SIZE_MAX = 200
DNS_NAME_SIZE_MAX = 253
USER_SIZE_MAX = 64  # RFC 5321, 4.5.3.1.1

_DNS_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_USER_FILLING = re.compile(r"[a-z0-9._-]+")
_HOST_FILLING = re.compile(r"[a-z0-9-]+")
# RFC 3986: scheme, colon, then reserved, unreserved and percent-encoded characters.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+")


def check_dns_template(template: str) -> None:
    """Raises: Invalid (`bad-rule`)."""
    if not _is_dns_name(_sample(template)):
        what = f"{template[:80]!r} is not a DNS name."
        raise Invalid("bad-rule", what, "For instance: {id}.devices.example.com")


def check_uri_template(template: str) -> None:
    """Raises: Invalid (`bad-rule`)."""
    if not _is_uri(_sample(template)):
        what = (
            f"{template[:80]!r} is not a URI; one with // needs a host with a dot, or an address (RFC 5280, 4.2.1.6)."
        )
        raise Invalid("bad-rule", what, "For instance: https://example.com/devices/{id} or urn:example:{id}")


def check_user_template(template: str) -> None:
    """A mail address or a user principal name. Raises: Invalid (`bad-rule`)."""
    if not _is_user_name(_sample(template)) or "{id}" not in template:
        raise Invalid(
            "bad-rule", f"{template[:80]!r} is not of the form USER@DOMAIN.", "For instance: {id}@example.com"
        )


def check_model_name(model: str, dns_template: str, uri_templates: Sequence[str]) -> None:
    """Check that a model's name fits its own templates, before its devices fail to enroll.

    Raises: Invalid (`bad-rule`).
    """
    try:
        if dns_template:
            dns_name(dns_template, "x", model)
        for template in uri_templates:
            uri(template, "x", model)
    except Refused as refused:
        raise Invalid("bad-rule", f"The name of model {model} cannot be used in a host.", refused.advice) from None


def dns_name(template: str, device: str, model: str) -> str:
    """The DNS name of `device`.

    Raises: Refused (`name-impossible`): its id or its model's name is not allowed there.
    """
    name = _filled(template, device, model)
    if not _fits_host(template, device, model) or not _is_dns_name(name):
        raise _impossible(device, template, "a DNS name")
    return name


def uri(template: str, device: str, model: str) -> str:
    """The URI of `device`. Raises: Refused (`name-impossible`): its id or its model's name is not allowed there."""
    name = _filled(template, device, model)
    parts = _split(template)
    host = parts.netloc if parts is not None else ""
    if not _fits_host(host, device, model) or not _is_uri(name):
        raise _impossible(device, template, "a URI's host")
    return name


def user_name(template: str, device: str, model: str) -> str:
    """The mail address, or user principal name, of `device`. Raises: Refused (`name-impossible`)."""
    name = _filled(template, device, model)
    user, _, domain = template.partition("@")
    # Mail servers fold case. A dot delimits nothing where only one value is filled in.
    fits = _fits_host(user, device, model) or ("{model}" not in user and bool(_USER_FILLING.fullmatch(device)))
    if not fits or not _fits_host(domain, device, model) or not _is_user_name(name):
        raise _impossible(device, template, "a user's name")
    return name


def _impossible(device: str, template: str, where: str) -> Refused:
    return Refused(
        "name-impossible",
        f"The id of device {device} or its model's name cannot be in {where} as the model's {template!r} requires.",
        "Only lower-case letters, digits and dashes, at most 63.",
    )


def _filled(template: str, device: str, model: str) -> str:
    return template.replace("{id}", device).replace("{model}", model)


def _fits_host(host: str, device: str, model: str) -> bool:
    """Whether the values of {id} and {model} in `host` are delimited unambiguously."""
    fillings = [value for mark, value in (("{id}", device), ("{model}", model)) if mark in host]
    return all(_HOST_FILLING.fullmatch(value) for value in fillings)


def _sample(template: str) -> str:
    """Raises: Invalid (`bad-rule`)."""
    sample = _filled(template, "x", "x")
    if "{" in sample or "}" in sample or len(template) > TEMPLATE_SIZE_MAX:
        raise Invalid("bad-rule", f"{template[:80]!r} holds braces other than {{id}} and {{model}}, or is too long.")
    return sample


def _is_dns_name(text: str) -> bool:
    labels = text.split(".")
    return len(text) <= DNS_NAME_SIZE_MAX and len(labels) > 1 and all(_DNS_LABEL.fullmatch(label) for label in labels)


def _is_uri(text: str) -> bool:
    """RFC 5280, 4.2.1.6: absolute, and an authority includes a fully qualified domain name or an IP address."""
    parts = _split(text)
    if parts is None or not _URI.fullmatch(text):
        return False
    if not text.partition(":")[2].startswith("//"):
        return True
    return "@" not in parts.netloc and _is_host(parts.hostname or "")


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _is_dns_name(text)
    return True


def _is_user_name(text: str) -> bool:
    """RFC 5321, 4.1.2: a dot-string of ASCII, and a domain."""
    user, _, domain = text.partition("@")
    return len(user) <= USER_SIZE_MAX and bool(_USER.fullmatch(user)) and _is_dns_name(domain)


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        _ = parts.port  # validated lazily
    except ValueError:
        return None
    return parts
