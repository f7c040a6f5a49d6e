"""Messages of the serial protocol to and from JSON; octets are in hex.

{"message": "ReadCsr", "session": "a1b2c3d4e5f60718", "step": 2, "fields": {"offset": 0}}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fleet.wire.errors import Malformed
from fleet.wire.serial.field_types import Bytes, ListOf
from fleet.wire.serial.messages import BODIES, Message
from fleet.wire.serial.vectors import CHALLENGE, MESSAGES, POSSESSION, REFUSED, SESSION, SIGNED

_BY_NAME = {body.__name__: body for body in BODIES.values()}
_OLD_NAMES = {"Facts": "DeviceInfo"}  # of messages that were renamed, for files written before
_KEYS = {"message", "session", "step", "fields"}


def message_to_json(message: Message) -> dict[str, object]:
    """`message` as JSON types."""
    body = message.body
    fields = {field.name: getattr(body, field.name) for field in dataclasses.fields(body)}
    return {
        "message": type(body).__name__,
        "session": message.session.hex(),
        "step": message.step,
        "fields": {name: _plain(value) for name, value in fields.items()},
    }


def message_from_json(tree: object) -> Message:
    """The message in `tree`; its fields are checked when it is encoded.

    Raises: Malformed.
    """
    if not isinstance(tree, Mapping) or set(tree) != _KEYS or not isinstance(tree["fields"], Mapping):
        raise Malformed(f"A message has the keys {', '.join(sorted(_KEYS))}.")
    name = str(tree["message"])
    kind = _BY_NAME.get(_OLD_NAMES.get(name, name))
    if kind is None:
        raise Malformed(f"There is no message {name[:40]!r}, only: {', '.join(_BY_NAME)}.")
    names = [field.name for field in dataclasses.fields(kind)]
    if set(tree["fields"]) != set(names):
        raise Malformed(f"{kind.__name__} has the fields: {', '.join(names) or 'none'}.")
    values: dict[str, Any] = {}
    for name, field_type in zip(names, kind.FIELD_TYPES, strict=True):
        value = tree["fields"][name]
        if isinstance(field_type, Bytes):
            value = _octets(value, name)
        elif isinstance(field_type, ListOf) and isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return Message(_octets(tree["session"], "session"), tree["step"], kind(**values))


def vectors() -> dict[str, object]:
    """The section Vectors of PROTOCOL.md."""
    return {
        "version": 1,
        "messages": [
            {"name": vector.name}
            | message_to_json(vector.message)
            | {"kind": vector.message.body.KIND, "payload": vector.payload.hex(), "frame": vector.frame.hex()}
            for vector in MESSAGES
        ],
        "refused": [{"name": each.name, "octets": each.octets.hex(), "answer": each.answer} for each in REFUSED],
        "possession": {
            "session": SESSION.hex(),
            "challenge": CHALLENGE.hex(),
            "signed": SIGNED.hex(),
            "samples": [
                {
                    "name": sample.name,
                    "private_key": sample.private_key.hex(),
                    "signature": sample.signature.hex(),
                    "deterministic": sample.deterministic,
                }
                for sample in POSSESSION
            ],
        },
    }


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _octets(value: object, name: str) -> bytes:
    try:
        return bytes.fromhex(value if isinstance(value, str) else "?")
    except ValueError:
        raise Malformed(f"{name} is not hex.") from None
