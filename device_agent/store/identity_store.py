"""Store of the device's key and certificate: two slots, one of them current, switched atomically.

    HOME/slot-a/{key.pem, cert.pem, meta.json}
    HOME/slot-b/{key.pem, cert.pem, meta.json}
    HOME/current -> slot-a       a file that names the slot, where the file system has no links

A new identity is always written to the slot that is not current, meta.json last: it has the hashes of the other two
files, so a slot is either complete or counts as empty after a power loss. A complete slot of a later generation than
the current one is a *candidate*. `promote` makes it current once it is proven, and only then erases its predecessor. A
process that is killed at any point leaves a usable identity.

cert.pem has the certificate and its chain, without the root. Other programs may read `current/cert.pem` and
`current/key.pem`. meta.json also has the dates, so that the long-lived process does not parse certificates.
"""

import hashlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from device_agent.errors import StoreDamaged
from device_agent.store.atomic_files import (
    Checkpoint,
    held_lock,
    made_folder,
    no_checkpoint,
    point_atomically,
    pointed,
    read_capped,
    sync_directory,
    write_atomically,
)
from device_agent.store.bootstrap import bootstrap_of
from device_agent.store.locks import SLOTS_LOCK
from fleet.est_client.validity import Lifetime

SLOTS = ("slot-a", "slot-b")
FILE_SIZE_MAX = 64 * 1024  # bytes; a chain with post-quantum keys is about 20 KB

_KEY, _CERTIFICATE, _META, _CURRENT = "key.pem", "cert.pem", "meta.json", "current"


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """Recorded when a certificate is stored. Dates are aware, UTC; `serial` and `fingerprint` are hex."""

    device_id: str
    serial: str
    fingerprint: str
    """SHA-256 over the certificate's DER."""
    issuer: str
    not_before: datetime
    not_after: datetime
    obtained_at: datetime | None = None
    """By this device's clock; None if unknown."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate: a complete slot."""

    slot: str
    generation: int
    certificate: CertificateInfo
    certificate_file: Path
    key_file: Path

    @property
    def lifetime(self) -> Lifetime:
        return Lifetime(self.certificate.not_before, self.certificate.not_after, self.certificate.obtained_at)

    @property
    def files(self) -> tuple[Path, Path]:
        """Chain and key, as ssl and EstClient expect them."""
        return self.certificate_file, self.key_file


class IdentityStore:
    """The identities in one home. Stateless: each call reads the files."""

    def __init__(self, home: Path, checkpoint: Checkpoint = no_checkpoint) -> None:
        self._home = home
        self._checkpoint = checkpoint

    def lock(self, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Hold it while writing a candidate, promoting or clearing. Raises: Busy if another process still holds it
        after `wait_seconds`."""
        return held_lock(
            self._home / SLOTS_LOCK,
            "Another device-agent command is changing this device's identity.",
            "Wait for it to finish.",
            wait_seconds,
        )

    def current(self) -> Identity | None:
        """The identity in use; None if there is none, or its files are damaged."""
        return self.pair()[0]

    def candidate(self) -> Identity | None:
        """A complete identity that is not proven yet, or None."""
        return self.pair()[1]

    def has_bootstrap(self) -> bool:
        """Whether there is a credential for another first enrollment."""
        return bootstrap_of(self._home) is not None

    def slots(self) -> dict[str, str]:
        """State of each slot: current, candidate, old, incomplete or empty."""
        current, candidate = self.pair()
        words = {}
        for slot in SLOTS:
            if current and slot == current.slot:
                words[slot] = "current"
            elif candidate and slot == candidate.slot:
                words[slot] = "candidate"
            elif self._read(slot):
                words[slot] = "old"
            else:
                words[slot] = "incomplete" if any((self._home / slot).glob("*.*")) else "empty"
        return words

    def spare_slot(self) -> str:
        """The slot for a new identity: never the one in use, even if that cannot be read for now."""
        current, candidate = self.pair()
        keep = current or candidate
        return SLOTS[1] if (keep.slot if keep else self._pointed_slot()) == SLOTS[0] else SLOTS[0]

    def unfinished_key(self, slot: str) -> bytes | None:
        """The PEM key in `slot` if there is no certificate for it yet: an interrupted enrollment is retried with the
        same key, so that a server that has already issued for it recognizes it."""
        directory = self._home / slot
        if (directory / _META).exists():
            return None
        return _read_capped(directory / _KEY)

    def key_file(self, slot: str) -> Path:
        """Path of the key in `slot`."""
        return self._home / slot / _KEY

    def clear(self, slot: str) -> None:
        """Erase `slot`. Its meta.json is removed first: the slot counts as empty from then on.

        Raises: StoreDamaged if the slot is in use; OSError.
        """
        current, candidate = self.pair()
        if slot == (current.slot if current else candidate.slot if candidate else None):
            raise StoreDamaged(f"{slot} holds the identity in use, and is kept.")
        directory = self._home / slot
        if not os.path.lexists(directory):
            return
        made_folder(directory)
        for name in (_META, _CERTIFICATE, _KEY):
            (directory / name).unlink(missing_ok=True)
            self._checkpoint(f"{name} removed")
            sync_directory(directory)
        for draft in directory.glob(".*.new"):
            draft.unlink(missing_ok=True)

    def write_key(self, slot: str, key_pem: bytes) -> None:
        """Store the key of the next identity, 0600. Raises: OSError."""
        directory = self._home / slot
        if made_folder(directory):
            self._checkpoint("slot made")
        write_atomically(directory / _KEY, key_pem, self._checkpoint)

    def complete(self, slot: str, chain_pem: bytes, info: CertificateInfo) -> Identity:
        """Store the certificate for the key in `slot`, which makes it a candidate.

        Raises: StoreDamaged if the slot cannot be read back; OSError.
        """
        directory = self._home / slot
        made_folder(directory)
        key_pem = _read_capped(directory / _KEY)
        if key_pem is None:
            raise StoreDamaged(f"There is no key in {directory}.")
        write_atomically(directory / _CERTIFICATE, chain_pem, self._checkpoint)
        generations = [identity.generation for other in SLOTS if (identity := self._read(other))]
        meta = asdict(info) | {
            "not_before": info.not_before.isoformat(),
            "not_after": info.not_after.isoformat(),
            "obtained_at": info.obtained_at.isoformat() if info.obtained_at else None,
            "generation": max(generations, default=0) + 1,
            "key_file_sha256": hashlib.sha256(key_pem).hexdigest(),
            "certificate_file_sha256": hashlib.sha256(chain_pem).hexdigest(),
        }
        write_atomically(directory / _META, json.dumps(meta, indent=1).encode(), self._checkpoint)
        identity = self._read(slot)
        if identity is None:
            raise StoreDamaged(f"What was written to {directory} cannot be read back.", "Check the disk.")
        return identity

    def promote(self, candidate: Identity) -> None:
        """Make a proven candidate current, atomically, and then erase its predecessor.

        Raises: StoreDamaged if the candidate is not complete; OSError.
        """
        if self._read(candidate.slot) != candidate:
            raise StoreDamaged(f"{candidate.slot} is no longer complete.")
        point_atomically(self._home / _CURRENT, candidate.slot, self._checkpoint)
        self.clear(self.spare_slot())

    def pair(self) -> tuple[Identity | None, Identity | None]:
        """`current` and `candidate`, as of one reading."""
        by_slot = {slot: identity for slot in SLOTS if (identity := self._read(slot))}
        current = by_slot.pop(self._pointed_slot() or "", None)
        others = sorted(by_slot.values(), key=lambda identity: identity.generation)
        if current is None and len(others) == 2:
            current = others.pop(0)  # the link is lost: the older one has been proven
        # Older than the current one: a predecessor whose erasure was interrupted. Never used again.
        if current and others and others[0].generation < current.generation:
            others = []
        return current, others[0] if others else None

    def _pointed_slot(self) -> str | None:
        pointer = self._home / _CURRENT
        name = pointed(pointer)
        if name in SLOTS:
            return name
        # A directory: the home was copied by something that follows links. It is a copy of the slot with its record.
        copied = _read_capped(pointer / _META)
        same = [slot for slot in SLOTS if copied is not None and _read_capped(self._home / slot / _META) == copied]
        return same[0] if same else None

    def _read(self, slot: str) -> Identity | None:
        directory = self._home / slot
        key, certificate, meta = (_read_capped(directory / name) for name in (_KEY, _CERTIFICATE, _META))
        if not key or not certificate or not meta:
            return None
        try:
            tree = json.loads(meta)
            if tree["key_file_sha256"] != hashlib.sha256(key).hexdigest():
                return None
            if tree["certificate_file_sha256"] != hashlib.sha256(certificate).hexdigest():
                return None
            info = CertificateInfo(
                device_id=str(tree["device_id"]),
                serial=str(tree["serial"]),
                fingerprint=str(tree["fingerprint"]),
                issuer=str(tree["issuer"]),
                not_before=_aware(tree["not_before"]),
                not_after=_aware(tree["not_after"]),
                obtained_at=_aware(tree["obtained_at"]) if tree.get("obtained_at") else None,
            )
            return Identity(slot, int(tree["generation"]), info, directory / _CERTIFICATE, directory / _KEY)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None  # damaged, as by a power loss: counts as empty


def _aware(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a date without a zone")
    return moment.astimezone(UTC)


def _read_capped(path: Path) -> bytes | None:
    try:
        return read_capped(path, FILE_SIZE_MAX) or None
    except OSError:
        return None
