"""Manifest: expected devices, each with its key hash, its hardware serial, or both."""

import hashlib
import json

from msgspec import Struct

from fleet.domain.device import Device, DeviceId, Tags
from fleet.domain.errors import Invalid, Refused
from fleet.wire.hardware_serial import comparable

KEY_HASH_SIZE = 32


class ManifestRow(Struct, frozen=True):
    """One validated row of an imported file."""

    device_id: DeviceId
    model: str
    hardware_serial: str = ""
    key_sha256: bytes | None = None
    """SHA-256 of the DER SubjectPublicKeyInfo of the device's key."""
    tags: Tags = ()
    groups: tuple[str, ...] = ()

    def digest(self) -> bytes:
        """Digest that identifies this row among rows for the device; changes of tags and groups do not matter."""
        key = self.key_sha256.hex() if self.key_sha256 is not None else None
        values = (self.device_id, self.model, self.hardware_serial, key, self.tags, self.groups)
        return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).digest()


class ManifestEntry(Struct, frozen=True):
    """A row as stored in the registry."""

    device_id: DeviceId
    model: str
    hardware_serial: str
    """"" for none; unique by `serial_key` among the devices of a model that are not revoked or retired."""
    key_sha256: bytes | None
    """None for none; unique in the registry."""
    row_sha256: bytes


def must_be_the_listed_key(entry: ManifestEntry | None, key_sha256: bytes) -> None:
    """Check a key against the device's `entry`, if any. A shared right cannot override a listed key.

    Raises: Refused (`not-your-key`).
    """
    if entry is not None and entry.key_sha256 is not None and entry.key_sha256 != key_sha256:
        raise Refused(
            "not-your-key",
            "The manifest lists another key for this device.",
            "Make a token for this very device to enroll it with a new key.",
        )


class ListedDevice(Struct, frozen=True):
    """A device registered by the manifest, with its entry."""

    device: Device
    entry: ManifestEntry


class ManifestFacts(Struct, frozen=True):
    """Existing records that match or conflict with some rows."""

    entries: tuple[ManifestEntry, ...]
    """Entries with one of the device ids, serials or keys requested."""
    devices: frozenset[str]
    """Requested ids that are registered, by the manifest or otherwise."""


def serial_key(model: str, serial: str) -> tuple[str, str]:
    """What no two devices in service have in common that have a hardware serial."""
    return model, comparable(serial)


def key_hash(text: str) -> bytes | None:
    """64 hex digits as a key hash; None for "".

    Raises: Invalid (`bad-key-hash`).
    """
    if not text:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != KEY_HASH_SIZE or len(text) != 2 * KEY_HASH_SIZE:
        message = "A key hash is the SHA-256 of the key's DER SubjectPublicKeyInfo: 64 hex digits."
        raise Invalid("bad-key-hash", message, "openssl pkey -pubin -in KEY.pem -outform DER | openssl sha256")
    return value
