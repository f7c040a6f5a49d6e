"""Client ids of a device's MQTT sessions: by its model the device id alone, names beneath it as well, or any.

    broker_client_id("cam-7", "cam-7/pub", ClientIdBinding.PREFIX)      # "cam-7/pub"
    broker_client_id("cam-7", "pub", ClientIdBinding.ANY)               # "cam-7/~pub"

At the broker each is the device id, or begins with it and a slash, which no device id contains: no two devices have one
in common. What a client has chosen itself follows a tilde, with which no name begins.
"""

import hashlib
import re

from fleet.domain.mqtt_rules import ClientIdBinding

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
"""What may follow the device id and its slash."""
ANY_SIZE_MAX = 256  # characters of a client id of its own choice


def broker_client_id(device_id: str, client_id: str, binding: ClientIdBinding) -> str | None:
    """The client id at the broker of the device's session that asks for `client_id`; None: it may not have that."""
    if client_id == device_id:
        return device_id
    if binding is ClientIdBinding.EXACT:
        return None
    owner, _, name = client_id.partition("/")
    if owner == device_id and NAME.fullmatch(name):
        return client_id
    if binding is not ClientIdBinding.ANY or len(client_id) > ANY_SIZE_MAX or not client_id.isprintable():
        return None
    if NAME.fullmatch(client_id):
        return f"{device_id}/~{client_id}"
    return f"{device_id}/~~{hashlib.sha256(client_id.encode()).hexdigest()}"


def is_own(device_id: str, client_id: str, binding: ClientIdBinding) -> bool:
    """Whether the device may have a session of `client_id` at a broker that gets it as it is."""
    return broker_client_id(device_id, client_id, binding) == client_id


def is_bound(broker_id: str, binding: ClientIdBinding) -> bool:
    """Whether a session with this client id at the broker would still be admitted."""
    _, slash, name = broker_id.partition("/")
    return not slash or binding is ClientIdBinding.ANY or (binding is ClientIdBinding.PREFIX and name[:1] != "~")


def device_of(client_id: str) -> str:
    """The device that a client id of the first two bindings, or one at the broker, belongs to."""
    return client_id.partition("/")[0]
