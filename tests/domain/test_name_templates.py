"""Templates of names: which are taken, and which device can have which name."""

import pytest

from fleet.domain.errors import Invalid, Refused
from fleet.domain.name_templates import check_dns_template, check_model_name, check_uri_template, dns_name, uri


@pytest.mark.parametrize("template", ["{id}.example.com", "{id}.{model}.example.com", "dev-{id}.example"])
def test_dns_templates_that_are_taken(template: str) -> None:
    check_dns_template(template)


@pytest.mark.parametrize(
    "template",
    ["{id}", "{ID}.example.com", "{id}..com", "*.example.com", "{id}.exa_mple.com", "-{id}.a.b", "a b.c", "{id}.b\0.c"],
)
def test_dns_templates_that_are_not(template: str) -> None:
    with pytest.raises(Invalid):
        check_dns_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "urn:example:{model}:{id}",
        "urn:dev:mac:{id}",
        "https://example.com/{id}",
        "https://{id}.example.com",
        "spiffe://example.com/{model}/{id}",
        "https://192.0.2.7:8443/{id}?a=b#c",
        "https://[2001:db8::7]/{id}",
        "tag:example.com,2026:{id}",
        "https://example.com/%7B{id}",
    ],
)
def test_uri_templates_that_are_taken(template: str) -> None:
    check_uri_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "{id}",
        "/relative/{id}",
        "//example.com/{id}",
        "https:///{id}",
        "file:///{id}",
        "https://localhost/{id}",
        "https://user@example.com/{id}",
        "https://example.com:port/{id}",
        "https://exa_mple.com/{id}",
        "urn:example:{id} x",
        "urn:example:{id}%zz",
        "urn:example:ü{id}",
        "urn:",
        "1a:{id}",
        "https://[::1/{id}",
        "urn:{other}",
        "urn:" + "x" * 200,
    ],
)
def test_uri_templates_that_are_not(template: str) -> None:
    with pytest.raises(Invalid):
        check_uri_template(template)


def test_what_is_filled_in() -> None:
    assert dns_name("{id}.{model}.example.com", "a-1", "cam") == "a-1.cam.example.com"
    assert uri("urn:example:{model}:{id}:{id}", "A_1:b", "Cam.2") == "urn:example:Cam.2:A_1:b:A_1:b"
    assert uri("https://{model}.example.com/{id}", "A_1:b", "cam") == "https://cam.example.com/A_1:b"


@pytest.mark.parametrize("device", ["A-1", "a.1", "a_1", "a:1", "a" * 64, "a-"])
def test_two_devices_never_have_one_name(device: str) -> None:
    """DNS reads "A-1" as "a-1", and "a.1" under one model may be "1" under another."""
    with pytest.raises(Refused):
        dns_name("{id}.example.com", device, "cam")
    with pytest.raises(Refused):
        uri("https://{id}.example.com/", device, "cam")


def test_the_name_of_a_model_is_judged_when_it_is_made() -> None:
    check_model_name("cam-2", "{id}.{model}.example.com", ("https://{model}.example.com/{id}",))
    check_model_name("Cam.2", "{id}.example.com", ("urn:example:{model}:{id}",))
    for dns, uris in (("{id}.{model}.example.com", ()), ("", ("https://{model}.example.com/{id}",))):
        with pytest.raises(Invalid, match="cannot be used in a host"):
            check_model_name("Cam.2", dns, uris)
