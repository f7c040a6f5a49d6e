"""No service gets a name of the fleet's own server: devices trust our root, and would take it for the server."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs

from fleet.config.settings import Settings
from fleet.domain.errors import Refused
from fleet.domain.model_rules import ProfileRules
from fleet.home.creation import create_home
from fleet.home.reloading_ca import LiveAuthorities
from tests.ca.certificate_kinds import KEYS, permit_for

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PROFILE = ProfileRules(hardware_module_name=False, dns_name="{id}.example.com", service=True)


async def test_a_name_of_the_server_is_refused_and_another_is_not(tmp_path: Path) -> None:
    home = await create_home(tmp_path / "home", Settings(hosts=("localhost", "Fleet.example.com")), NOW)
    live = LiveAuthorities(home)
    permit = permit_for(KEYS["EC-P256"], NOW, PROFILE)
    assert live.issue(structs.replace(permit, holder="shop"), NOW).holder == "shop"
    own = structs.replace(permit, holder="fleet")
    with pytest.raises(Refused) as caught:
        live.issue(own, NOW)
    assert caught.value.code == "name-impossible"
    # It is no server's certificate: as a device it may be called so.
    device = structs.replace(own, profile=structs.replace(PROFILE, service=False))
    assert live.issue(device, NOW).holder == "fleet"
