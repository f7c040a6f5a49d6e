"""What the plugin is to hold of models and devices, and the commands that lead there. No I/O.

    for batch in batched(commands_between(present, wanted)): ...

A client for each device, its user name the device id, which mosquitto takes from the certificate
(`use_identity_as_username`); a role for each model with the filters that all of its devices share; for filters with
{id}, which the plugin cannot fill in, a role of the device's own; before these RESERVED_ROLE, and behind them
DENY_REST, since by default the plugin delivers messages of subscriptions that were made before. Clients and roles that
others have made are not changed: ours carry OURS as their text name.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec import Struct

from fleet.domain.device import DEVICE_ID, IN_SERVICE, Device, DeviceState, Model
from fleet.domain.topic_policy import RESERVED, filled_for_model, is_per_device, policy_of

OURS = "fleet"
COMMANDS_MAX = 100
"""In one message: the plugin answers when all are done, and serves nobody meanwhile."""

DENY_REST = "fleet-deny-rest"
"""The role that every client of ours has last: what no other role allows is denied, whatever the plugin's default."""
RESERVED_ROLE = "fleet-reserved"
"""The role that every client of ours has first: it publishes nothing where the fleet alone does, whatever its model."""
_PRIORITIES = {DENY_REST: -1, RESERVED_ROLE: 1}  # 0 for the others
_DENIED = ("publishClientSend", "publishClientReceive", "subscribePattern")
_EVERY_TOPIC = ("#", "$SYS/#", "$CONTROL/#", "$share/#")  # [MQTT-4.7.2-1] # matches no topic that starts with $

_ANY_GROUP = "$share/+/"

Command = Mapping[str, Any]
Acl = tuple[str, str, bool]
"""acltype, topic filter, and whether it allows."""


class Client(Struct, frozen=True):
    """A client of the plugin."""

    roles: tuple[str, ...]
    is_enabled: bool


class Holdings(Struct):
    """What the plugin holds of ours."""

    roles: dict[str, frozenset[Acl]]
    clients: dict[str, Client]

    def only(self, roles: set[str], clients: set[str]) -> "Holdings":
        """Those of the given names."""
        return Holdings(
            {name: self.roles[name] for name in roles & self.roles.keys()},
            {name: self.clients[name] for name in clients & self.clients.keys()},
        )


def role_of_model(name: str) -> str:
    return f"model-{name}"


def role_of_device(device_id: str) -> str:
    return f"device-{device_id}"


def no_holdings() -> Holdings:
    """What is wanted without a model: DENY_REST and RESERVED_ROLE alone."""
    rest = frozenset((kind, topic, False) for kind in _DENIED for topic in _EVERY_TOPIC)
    return Holdings({DENY_REST: rest, RESERVED_ROLE: frozenset((_DENIED[0], each, False) for each in RESERVED)}, {})


def add_model(holdings: Holdings, model: Model) -> None:
    """The role with the filters that all devices of `model` share, also for `$share/GROUP/FILTER` where it allows that:
    the plugin looks for the whole of it in its patterns.
    """
    shared = ([each for each in kind if not is_per_device(each)] for kind in (model.publish, model.subscribe))
    filled = ([filled_for_model(each, model) for each in kind] for kind in shared)
    publish, subscribe = ([each for each in kind if each is not None] for kind in filled)
    groups = [f"{_ANY_GROUP}{each}" for each in subscribe if model.rules.mqtt.shared_subscriptions]
    acls = _acls(publish, subscribe) | {("subscribePattern", each, True) for each in groups}
    holdings.roles[role_of_model(model.name)] = acls


def add_device(holdings: Holdings, device: Device, model: Model, *, is_distrusted: bool = False) -> None:
    """The client of `device` with its roles; a retired device has none. It `is_distrusted` when its newest certificate
    is: the plugin does not know which one a client has.
    """
    if device.state is DeviceState.RETIRED:
        return
    if device.state not in IN_SERVICE or is_distrusted:
        holdings.clients[device.id] = Client((DENY_REST,), is_enabled=False)
        return
    policy, shared = policy_of(device, model), holdings.roles[role_of_model(model.name)]
    own, roles = _acls(policy.publish, policy.subscribe), [RESERVED_ROLE, DENY_REST]
    in_groups = {acl for acl in shared if acl[1].startswith(_ANY_GROUP) and policy.shared}
    if shared <= own | in_groups:  # an override by a tag may grant less than the model
        own -= shared
        roles.append(role_of_model(model.name))
    if own:
        holdings.roles[role_of_device(device.id)] = own
        roles.append(role_of_device(device.id))
    holdings.clients[device.id] = Client(tuple(sorted(roles)), is_enabled=True)


def _acls(publish: Sequence[str], subscribe: Sequence[str]) -> frozenset[Acl]:
    return frozenset(
        [("publishClientSend", each, True) for each in publish]
        + [(kind, each, True) for each in subscribe for kind in ("subscribePattern", "publishClientReceive")]
    )


class RoleName(Struct):
    rolename: str


class ListedAcl(Struct):
    acltype: str
    topic: str
    allow: bool = True


class ListedRole(Struct):
    rolename: str
    textname: str = ""
    acls: list[ListedAcl] = []


class ListedClient(Struct):
    username: str
    textname: str = ""
    roles: list[RoleName] = []
    disabled: bool = False


class Listing(Struct, frozen=True):
    """A part of what the plugin holds."""

    totalCount: int = 0  # noqa: N815
    roles: list[ListedRole] = []
    clients: list[ListedClient] = []


class Answer(Struct):
    """The plugin's answer to one command."""

    command: str = ""
    error: str = ""
    data: Listing = Listing()


class Answers(Struct):
    """The plugin's answer to one message."""

    responses: list[Answer]


def holdings_of(listings: Sequence[Listing]) -> Holdings:
    """Ours among what is listed."""
    return Holdings(
        {
            role.rolename: frozenset((acl.acltype, acl.topic, acl.allow) for acl in role.acls)
            for listing in listings
            for role in listing.roles
            if role.textname == OURS
        },
        {
            client.username: Client(tuple(sorted(role.rolename for role in client.roles)), not client.disabled)
            for listing in listings
            for client in listing.clients
            if client.textname == OURS
        },
    )


def commands_between(present: Holdings, wanted: Holdings) -> Iterator[Command]:
    """Those that make `wanted` of `present`: rights end first, and no client names a role that is not there."""
    for name, client in present.clients.items():
        if name not in wanted.clients:
            yield {"command": "deleteClient", "username": name}  # it is disconnected
        elif client.is_enabled and not wanted.clients[name].is_enabled:
            yield {"command": "disableClient", "username": name}  # likewise
    for name, acls in wanted.roles.items():
        if present.roles.get(name) != acls:
            command = "modifyRole" if name in present.roles else "createRole"
            listed = [_acl(each) for each in sorted(acls)]
            yield {"command": command, "rolename": name, "textname": OURS, "acls": listed}
    for name, client in wanted.clients.items():
        found = present.clients.get(name)
        if found is None or found.roles != client.roles:
            command = "createClient" if found is None else "modifyClient"
            roles = [{"rolename": role, "priority": _PRIORITIES.get(role, 0)} for role in client.roles]
            yield {"command": command, "username": name, "textname": OURS, "roles": roles}
        if found is None and not client.is_enabled:
            yield {"command": "disableClient", "username": name}
        elif found is not None and client.is_enabled and not found.is_enabled:
            yield {"command": "enableClient", "username": name}
    for name in present.roles.keys() - wanted.roles.keys():
        yield {"command": "deleteRole", "rolename": name}


def disconnecting(device_id: str) -> tuple[Command, Command]:
    """Those that end the connections of a device that stays in service."""
    return {"command": "disableClient", "username": device_id}, {"command": "enableClient", "username": device_id}


def _acl(acl: Acl) -> Mapping[str, Any]:
    kind, topic, allow = acl
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": allow}


def impersonable(listings: Sequence[Listing]) -> frozenset[str]:
    """Clients of others whose user name a device could have as its id, and so their roles."""
    names = (client.username for listing in listings for client in listing.clients if client.textname != OURS)
    return frozenset(name for name in names if DEVICE_ID.fullmatch(name))


def batched(commands: Iterator[Command]) -> Iterator[list[Command]]:
    """In messages of at most COMMANDS_MAX."""
    while batch := list(islice(commands, COMMANDS_MAX)):
        yield batch
