"""The commands that make the plugin's clients and roles equal to models and devices."""

from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec.structs import replace

from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttOverride, MqttRules
from fleet.dynamic_security.commands import (
    COMMANDS_MAX,
    DENY_REST,
    OURS,
    RESERVED_ROLE,
    Client,
    Holdings,
    ListedClient,
    ListedRole,
    Listing,
    add_device,
    add_model,
    batched,
    commands_between,
    holdings_of,
    impersonable,
    no_holdings,
)

CAM = Model("cam", publish=("devices/{id}/up/#", "all/{model}"), subscribe=("news/#",))


def of_fleet(device_id: str) -> set[tuple[str, str, bool]]:
    return {(kind, f"devices/{device_id}/fleet/#", True) for kind in ("subscribePattern", "publishClientReceive")}


def test_filters_with_tags_are_the_devices_own() -> None:
    model = replace(CAM, publish=("sites/{tag:site}", "{tenant}/a"), subscribe=())
    essen = replace(device("cam-1"), tags=(("site", "essen"),))
    found = holding(essen, device("cam-2"), model=model)
    assert found.roles["device-cam-1"] == {("publishClientSend", "sites/essen", True), *of_fleet("cam-1")}
    assert found.roles["device-cam-2"] == of_fleet("cam-2")
    assert found.roles["model-cam"] == frozenset()


def test_an_override_by_a_tag_may_grant_less_than_the_model() -> None:
    gold = MqttOverride("tier=gold", publish=("gold",))
    model = replace(CAM, rules=ModelRules(mqtt=MqttRules(overrides=(gold,))))
    found = holding(replace(device("cam-1"), tags=(("tier", "gold"),)), device("cam-2"), model=model)
    assert found.clients["cam-1"].roles == tuple(sorted((RESERVED_ROLE, DENY_REST, "device-cam-1")))
    assert ("publishClientSend", "gold", True) in found.roles["device-cam-1"]
    assert ("subscribePattern", "news/#", True) in found.roles["device-cam-1"]
    assert "model-cam" in found.clients["cam-2"].roles
    assert ("publishClientSend", "gold", True) not in found.roles["model-cam"]


def device(name: str, state: DeviceState = DeviceState.ACTIVE) -> Device:
    return Device(DeviceId(name), "cam", state, datetime(2030, 1, 1, tzinfo=UTC))


def holding(*devices: Device, model: Model = CAM) -> Holdings:
    holdings = no_holdings()
    add_model(holdings, model)
    for each in devices:
        add_device(holdings, each, model)
    return holdings


def words(present: Holdings, wanted: Holdings) -> list[str]:
    def name(command: object) -> str:
        assert isinstance(command, dict)
        return f"{command['command']} {command.get('username') or command.get('rolename')}"

    return [name(each) for each in commands_between(present, wanted)]


NOTHING = Holdings({}, {})


def test_filters_that_all_share_are_the_models_and_those_with_the_id_the_devices_own() -> None:
    found = holding(device("cam-1"))
    assert found.roles["model-cam"] == {
        ("publishClientSend", "all/cam", True),
        ("subscribePattern", "news/#", True),
        ("subscribePattern", "$share/+/news/#", True),
        ("publishClientReceive", "news/#", True),
    }
    assert found.roles["device-cam-1"] == {("publishClientSend", "devices/cam-1/up/#", True), *of_fleet("cam-1")}
    assert found.clients == {"cam-1": Client(("device-cam-1", DENY_REST, RESERVED_ROLE, "model-cam"), True)}


def test_no_role_of_a_device_comes_before_what_is_the_fleets_alone() -> None:
    (created,) = (each for each in commands_between(NOTHING, holding(device("cam-1"))) if each.get("username"))
    priorities = {role["rolename"]: role["priority"] for role in created["roles"]}
    assert priorities == {RESERVED_ROLE: 1, "device-cam-1": 0, "model-cam": 0, DENY_REST: -1}
    reserved = holding().roles[RESERVED_ROLE]
    assert reserved == {("publishClientSend", each, False) for each in ("devices/+/fleet/#", "fleet/presence/#")}


def test_a_model_without_shared_subscriptions_has_none_and_an_override_takes_them_from_its_devices() -> None:
    alone = replace(CAM, rules=ModelRules(mqtt=MqttRules(shared_subscriptions=False)))
    assert not any("$share" in topic for _, topic, _ in holding(device("cam-1"), model=alone).roles["model-cam"])
    override = MqttOverride("tier=low", shared_subscriptions=False)
    mixed = replace(CAM, rules=ModelRules(mqtt=MqttRules(overrides=(override,))))
    low = replace(device("cam-2"), tags=(("tier", "low"),))
    found = holding(device("cam-1"), low, model=mixed)
    assert "model-cam" in found.clients["cam-1"].roles
    assert "model-cam" not in found.clients["cam-2"].roles
    assert ("subscribePattern", "news/#", True) in found.roles["device-cam-2"]
    assert not any("$share" in topic for _, topic, _ in found.roles["device-cam-2"])


def test_roles_come_before_the_clients_that_have_them_and_go_after() -> None:
    assert words(NOTHING, holding(device("cam-1"))) == [
        f"createRole {DENY_REST}",
        f"createRole {RESERVED_ROLE}",
        "createRole model-cam",
        "createRole device-cam-1",
        "createClient cam-1",
    ]
    assert words(holding(device("cam-1")), holding()) == ["deleteClient cam-1", "deleteRole device-cam-1"]


def test_a_right_that_ends_ends_first() -> None:
    present = holding(device("cam-1"), device("cam-2"))
    wanted = holding(device("cam-1", DeviceState.REVOKED), device("cam-2"), device("cam-3"))
    assert words(present, wanted)[0] == "disableClient cam-1"
    assert wanted.clients["cam-1"] == Client((DENY_REST,), False)


def test_a_suspended_device_that_the_plugin_does_not_know_is_made_disabled() -> None:
    commands = words(NOTHING, holding(device("cam-1", DeviceState.SUSPENDED)))
    assert commands[-2:] == ["createClient cam-1", "disableClient cam-1"]


def test_a_resumed_device_is_enabled_with_its_roles() -> None:
    present, wanted = holding(device("cam-1", DeviceState.SUSPENDED)), holding(device("cam-1"))
    assert words(present, wanted) == ["createRole device-cam-1", "modifyClient cam-1", "enableClient cam-1"]


def test_a_distrusted_device_is_as_a_suspended_one() -> None:
    distrusted = no_holdings()
    add_model(distrusted, CAM)
    add_device(distrusted, device("cam-1"), CAM, is_distrusted=True)
    assert distrusted == holding(device("cam-1", DeviceState.SUSPENDED))


def test_a_retired_device_is_deleted() -> None:
    assert words(holding(device("cam-1")), holding(device("cam-1", DeviceState.RETIRED)))[0] == "deleteClient cam-1"


def test_nothing_is_done_when_nothing_differs() -> None:
    assert words(holding(device("cam-1")), holding(device("cam-1"))) == []


def test_what_others_have_made_is_not_ours() -> None:
    others = Listing(2, [ListedRole("admin"), ListedRole("mine", OURS)], [ListedClient("admin", "root's")])
    assert holdings_of([others]) == Holdings({"mine": frozenset()}, {})


def test_a_client_of_others_that_a_device_could_be_is_found() -> None:
    clients = [ListedClient("admin"), ListedClient("_fleet"), ListedClient("a/b"), ListedClient("cam-1", OURS)]
    assert impersonable([Listing(4, [], clients)]) == {"admin"}


def test_a_message_has_a_bounded_number_of_commands() -> None:
    many: Iterable[dict[str, str]] = ({"command": str(n)} for n in range(2 * COMMANDS_MAX + 1))
    assert [len(batch) for batch in batched(iter(many))] == [COMMANDS_MAX, COMMANDS_MAX, 1]
