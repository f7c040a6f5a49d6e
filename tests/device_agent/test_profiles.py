"""The agent against models that change: every kind of key it makes, renewed, and names that come and go."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.model_rules import rules_of
from fleet.est_client.arguments import AGENT_KEY_TYPES
from fleet.services import inventory
from fleet.wire.keys import key_type_of
from tests.device_agent.fleet_parts import Device

pytestmark = pytest.mark.usefixtures("forked_programs")


def newest(device: Device) -> x509.Certificate:
    found = device.est.call(device.est.registry.credentials(device.device_id))
    return x509.load_der_x509_certificate(found[-1].der)


def set_profile(device: Device, **profile: Any) -> None:
    async def change() -> None:
        known = await device.est.registry.device(device.device_id)
        assert known is not None
        model = await device.est.registry.model(known.model)
        assert model is not None
        changed = replace(model, rules=rules_of({"profile": profile}, model.rules))
        await inventory.set_model(device.est.registry, changed, act=Act("test", device.est.clock()))

    device.est.call(change())


@pytest.mark.parametrize("key_type", AGENT_KEY_TYPES)
def test_every_kind_of_key_is_renewed_as_what_it_was(new_device: Callable[[], Device], key_type: str) -> None:
    device = new_device().init()
    device.call("enroll", "--key-type", key_type, give=device.est.token(device.device_id, key_types=(key_type,)))
    first = newest(device)
    device.call("renew")
    second = newest(device)
    assert second != first
    assert key_type_of(first.public_key()) == key_type_of(second.public_key()) == key_type


def test_a_renewal_takes_what_the_profile_has_come_to_say(device: Device) -> None:
    assert newest(device).subject.rfc4514_string() == f"CN={device.device_id}"
    set_profile(
        device,
        organisation="Acme",
        uris=["urn:example:{id}"],
        extended_key_usages=["clientAuth", "emailProtection"],
    )
    for _ in range(2):  # the second is compared with what the first brought
        device.call("renew")
        assert newest(device).subject.rfc4514_string() == f"CN={device.device_id},O=Acme"
        names = newest(device).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [name.value for name in names] == [f"urn:example:{device.device_id}"]
    set_profile(device, organisation="", uris=[])
    device.call("renew")
    assert newest(device).subject.rfc4514_string() == f"CN={device.device_id}"
    assert device.status()["healthy"]
