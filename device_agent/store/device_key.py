"""The device's key: generated here, and stored before its first use. Needs `cryptography`."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from device_agent.errors import StoreDamaged
from device_agent.store import hardware_key
from device_agent.store.atomic_files import read_file
from device_agent.store.hardware_key import HardwareKey, KeyOfAnother
from device_agent.store.identity_store import CertificateInfo, IdentityStore
from device_agent.store.key_store import FILE, KeyStore
from fleet.est_client.arguments import AGENT_KEY_TYPES
from fleet.est_client.errors import BadConfig
from fleet.wire import keys
from fleet.wire.errors import WireError

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
"""Types of keys that a device can generate."""
RSA_BITS = 3072


def candidate_key(store: IdentityStore, key_type: str, key_store: KeyStore | None = None) -> tuple[str, PrivateKey]:
    """A slot for the next identity and the key in it: that of an interrupted enrollment, or a new one.

    Raises: BadConfig for a type that a device cannot generate; StoreDamaged, KeyStoreFailed, OSError.
    """
    slot = store.spare_slot()
    pem = store.unfinished_key(slot)
    if pem is not None:
        try:
            key = parse_key(pem, key_store)
        except KeyOfAnother:
            key = None
        if key is not None and has_type(key, key_type):
            return slot, key
    # Before the slot is cleared: while a TPM does not answer, nothing is given up.
    key = generate_key(key_type, key_store)
    store.clear(slot)
    store.write_key(slot, key_pem(key))
    return slot, key


def generate_key(key_type: str, key_store: KeyStore | None = None) -> PrivateKey:
    """A new key of a type named as in the fleet's models, in the key store; without one, in memory.

    Raises: BadConfig for a type that a device cannot generate; KeyStoreFailed, OSError.
    """
    if key_store is not None and key_store.kind != FILE:
        return hardware_key.generate(key_store, key_type)
    if key_type not in AGENT_KEY_TYPES:
        raise BadConfig(f"Keys of type {key_type[:40]!r} cannot be generated here.")
    return cast(PrivateKey, keys.generate_key(key_type, rsa_bits=RSA_BITS))


def has_type(key: PrivateKey, key_type: str) -> bool:
    """Whether `key` is of type `key_type`."""
    try:
        return keys.key_type_of(key.public_key()) == key_type
    except WireError:
        return False


def spki_der(key: PrivateKey) -> bytes:
    """The public key, a DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_pem(key: PrivateKey) -> bytes:
    """PKCS#8 in PEM, unencrypted: the file's mode and the disk protect it. Of a key in hardware, its reference."""
    if isinstance(key, HardwareKey):
        return key.pem
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_key(pem: bytes, key_store: KeyStore | None = None) -> PrivateKey | None:
    """The key in `pem`; None if it is damaged, as by a power loss.

    Raises: KeyOfAnother; KeyStoreFailed for a key in hardware that does not answer; OSError.
    """
    try:
        if key_store is not None and key_store.kind != FILE:
            return HardwareKey(pem, key_store)
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        return None
    return key if isinstance(key, PrivateKey) else None


def load_key(path: Path, key_store: KeyStore | None = None) -> PrivateKey:
    """The key that the file `path` holds, or refers to.

    Raises: StoreDamaged, KeyStoreFailed, OSError.
    """
    key = parse_key(read_file(path), key_store)
    if key is None:
        raise StoreDamaged(f"{path} holds no key of a supported type.")
    return key


def device_subject(device_id: str, hardware_serial: str) -> list[tuple[str, str]]:
    """The subject of this device's CSR: common name, and the hardware serial if known."""
    subject = [(NameOID.COMMON_NAME.dotted_string, device_id)]
    if hardware_serial:
        subject.append((NameOID.SERIAL_NUMBER.dotted_string, hardware_serial))
    return subject


def fingerprint(key: PrivateKey) -> str:
    """The first 8 octets of the public key's SHA-256, as operators see them: "91ab-0c2d-77de-0b12"."""
    text = hashlib.sha256(spki_der(key)).hexdigest()[:16]
    return "-".join(text[n : n + 4] for n in range(0, 16, 4))


def certificate_info(certificate: x509.Certificate, device_id: str, obtained_at: datetime) -> CertificateInfo:
    """The record that the identity store keeps beside the certificate."""
    return CertificateInfo(
        device_id=device_id,
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        obtained_at=obtained_at,
    )
