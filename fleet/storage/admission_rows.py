"""Manifest, claims, makers' CAs and what their certificates were used for: values to columns and back, for every
engine.
"""

import json

from fleet.domain.claim import Claim
from fleet.domain.device import DeviceId
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.manifest import ManifestEntry
from fleet.storage.mapping import Row, listing, micros, moment

MANIFEST_COLUMNS = ("device_id", "model", "hardware_serial", "key_sha256", "row_sha256")
CLAIM_COLUMNS = (
    "name",
    "model",
    "quota",
    "uses",
    "created_at",
    "expires_at",
    "takeovers",
    "quarantined_at",
    "quarantine_reason",
    "revoked_at",
)
ANCHOR_COLUMNS = ("name", "models", "fingerprint", "der", "created_at")
IDEVID_COLUMNS = ("key_sha256", "device_id", "fingerprint", "anchor", "bound_at")


def manifest_row(entry: ManifestEntry) -> Row:
    return (entry.device_id, entry.model, entry.hardware_serial, entry.key_sha256, entry.row_sha256)


def manifest_of(row: Row) -> ManifestEntry:
    return ManifestEntry(DeviceId(row[0]), row[1], row[2], row[3], row[4])


def claim_row(c: Claim) -> Row:
    return (
        c.name,
        c.model,
        c.quota,
        c.uses,
        micros(c.created_at),
        micros(c.expires_at),
        c.takeovers,
        None if c.quarantined_at is None else micros(c.quarantined_at),
        c.quarantine_reason,
        None if c.revoked_at is None else micros(c.revoked_at),
    )


def claim_of(row: Row) -> Claim:
    return Claim(
        name=row[0],
        model=row[1],
        quota=row[2],
        uses=row[3],
        created_at=moment(row[4]),
        expires_at=moment(row[5]),
        takeovers=row[6],
        quarantined_at=None if row[7] is None else moment(row[7]),
        quarantine_reason=row[8],
        revoked_at=None if row[9] is None else moment(row[9]),
    )


def anchor_row(anchor: Anchor) -> Row:
    return (anchor.name, listing(anchor.models), anchor.fingerprint, anchor.der, micros(anchor.created_at))


def anchor_of(row: Row) -> Anchor:
    return Anchor(row[0], tuple(json.loads(row[1])), row[2], row[3], moment(row[4]))


def idevid_row(b: IdevidBinding) -> Row:
    return (b.key_sha256, b.device_id, b.fingerprint, b.anchor, micros(b.bound_at))


def idevid_of(row: Row) -> IdevidBinding:
    return IdevidBinding(row[0], DeviceId(row[1]), row[2], row[3], moment(row[4]))
