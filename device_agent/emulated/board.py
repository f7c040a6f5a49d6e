"""An emulated board whose flash is a device-agent home: `device-agent run` uses what the station has written.

    blank         no key
    pending       board.json names the device id of the key in the spare slot
    provisioned   agent.toml exists, and the current slot's certificate is for its device id

Each step can be repeated after a power loss: the key is on disk before the CSR is sent, the certificate before it is
acknowledged, and agent.toml, which completes the home, is written last.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.config.agent_config import FILE_NAME, AgentConfig, NewHome, read_config, write_config
from device_agent.store.atomic_files import (
    Checkpoint,
    must_be_ours,
    no_checkpoint,
    read_capped,
    read_file,
    sync_directory,
    write_atomically,
)
from device_agent.store.device_key import (
    PrivateKey,
    candidate_key,
    certificate_info,
    device_subject,
    has_type,
    key_pem,
    load_key,
    spki_der,
)
from device_agent.store.identity_store import Identity, IdentityStore
from fleet.est_client.arguments import AGENT_KEY_TYPES, check_device_id
from fleet.est_client.certificate_checks import check_certificate
from fleet.est_client.errors import BadConfig, ClientError, EstError
from fleet.wire.csr import build_csr
from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.errors import BoardRefused
from fleet.wire.serial.dialogue.events import ProvisioningData
from fleet.wire.serial.messages import FailureCode
from fleet.wire.serial.possession import sign

_NOTE_NAME = "board.json"
_NOTE_SIZE_MAX = 4096


@dataclass(frozen=True, slots=True)
class Hardware:
    """Fixed properties of the board."""

    serial: str = "EMU-0001"
    model: str = "emulated"
    firmware: str = "emulated"
    chunk_size_max: int = 512


class HomeBoard:
    """Implements `fleet.wire.serial.dialogue.device.Board` on the home at `home`."""

    def __init__(
        self, home: Path, hardware: Hardware, clock: Callable[[], datetime], checkpoint: Checkpoint = no_checkpoint
    ) -> None:
        self._home = home
        self._hardware = hardware
        self._clock = clock
        self._store = IdentityStore(home, checkpoint)
        self._checkpoint = checkpoint
        self._device_id = ""
        self._key: PrivateKey | None = None
        self._accepted: ProvisioningData | None = None

    def device_info(self) -> m.DeviceInfo:
        with self._refusals():
            state, device_id = self._state()
        hardware = self._hardware
        return m.DeviceInfo(
            version=m.VERSION,
            hardware_serial=hardware.serial,
            model=hardware.model,
            firmware=hardware.firmware,
            key_types=AGENT_KEY_TYPES,
            chunk_size_max=hardware.chunk_size_max,
            state=state,
            device_id=device_id,
        )

    def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
        with self._writing():
            check_device_id(device_id)
            state, held = self._state()
            if state == m.PROVISIONED and held != device_id and not replace:
                raise BoardRefused(FailureCode.ALREADY_PROVISIONED, f"This board is provisioned as {held}.")
            self._key = self._key_for(device_id, key_type)
            self._device_id = device_id
            return build_csr(self._key, device_subject(device_id, self._hardware.serial), [])

    def install(self, data: ProvisioningData) -> bytes:
        certificate, *intermediates = data.chain
        with self._writing():
            key = self._made_key()
            if certificate.public_key() != key.public_key():
                raise BoardRefused(FailureCode.KEY_MISMATCH, "The certificate is for another key than this board's.")
            try:
                chain = check_certificate(
                    certificate,
                    spki_der=spki_der(key),
                    device_id=self._device_id,
                    intermediates=intermediates,
                    anchors=data.anchors,
                    now=self._clock(),
                )
            except EstError as error:
                raise BoardRefused(FailureCode.BAD_CERTIFICATE, error.message) from error
            fingerprint = certificate.fingerprint(hashes.SHA256())
            if self._identity_with(fingerprint) is None:
                self._store_identity(key, (certificate, *chain))
            self._accepted = data
            return fingerprint

    def sign(self, octets: bytes) -> bytes:
        with self._refusals():
            return sign(self._made_key(), octets)

    def activate(self) -> None:
        accepted = self._accepted
        if accepted is None:
            raise BoardRefused(FailureCode.OUT_OF_ORDER, "Nothing has been installed.")
        with self._writing():
            stored = self._identity_with(accepted.chain[0].fingerprint(hashes.SHA256()))
            if stored is None:
                raise BoardRefused(FailureCode.STORAGE, "The installed identity is gone.")
            unchanged = self._has_settings(accepted)
            if not unchanged:
                # Old settings are removed first: after a power loss the home is incomplete, never a mix of two devices.
                (self._home / FILE_NAME).unlink(missing_ok=True)
                sync_directory(self._home)
                self._checkpoint("old settings removed")
            if stored != self._store.current():
                self._store.promote(stored)
            if not unchanged:
                new = NewHome(
                    self._device_id,
                    accepted.est_url,
                    accepted.mqtt_host,
                    accepted.mqtt_port,
                    _pem(accepted.anchors),
                    self._hardware.serial,
                )
                write_config(self._home, new)
                self._checkpoint("settings written")
            (self._home / _NOTE_NAME).unlink(missing_ok=True)

    def _state(self) -> tuple[str, str]:
        config, current = self._config(), self._store.current()
        if config is not None and current is not None and current.certificate.device_id == config.device_id:
            return m.PROVISIONED, config.device_id
        noted = self._noted_device_id()
        return (m.PENDING, noted) if noted else (m.BLANK, "")

    def _config(self) -> AgentConfig | None:
        if not (self._home / FILE_NAME).exists():
            return None
        return read_config(self._home)

    def _key_for(self, device_id: str, key_type: str) -> PrivateKey:
        for identity in (self._store.current(), self._store.candidate()):
            if identity is not None and identity.certificate.device_id == device_id:
                key = load_key(identity.key_file)
                if has_type(key, key_type):
                    return key
        if self._noted_device_id() != device_id:
            # A key generated for one device id is never used for another: there may be a certificate for it already.
            self._store.clear(self._store.spare_slot())
            write_atomically(self._home / _NOTE_NAME, json.dumps({"device_id": device_id}).encode(), self._checkpoint)
        try:
            return candidate_key(self._store, key_type)[1]
        except BadConfig as error:
            raise BoardRefused(FailureCode.UNSUPPORTED, error.message) from error

    def _noted_device_id(self) -> str:
        try:
            note = read_capped(self._home / _NOTE_NAME, _NOTE_SIZE_MAX)
            return check_device_id(str(json.loads(note)["device_id"]))
        except (OSError, ValueError, KeyError, TypeError, BadConfig):
            return ""

    def _made_key(self) -> PrivateKey:
        if self._key is None:
            raise BoardRefused(FailureCode.OUT_OF_ORDER, "No key has been requested.")
        return self._key

    def _identity_with(self, fingerprint: bytes) -> Identity | None:
        for identity in (self._store.current(), self._store.candidate()):
            if identity is not None and identity.certificate.fingerprint == fingerprint.hex():
                return identity
        return None

    def _store_identity(self, key: PrivateKey, chain: tuple[x509.Certificate, ...]) -> None:
        slot = self._store.spare_slot()
        if self._store.unfinished_key(slot) != key_pem(key):
            # A new certificate for the key of a complete slot: key and certificate go into the other slot.
            self._store.clear(slot)
            self._store.write_key(slot, key_pem(key))
        self._store.complete(slot, _pem(chain), certificate_info(chain[0], self._device_id, self._clock()))

    def _has_settings(self, accepted: ProvisioningData) -> bool:
        config = self._config()
        return (
            config is not None
            and (config.device_id, config.hardware_serial) == (self._device_id, self._hardware.serial)
            and (config.est_url, config.mqtt_host, config.mqtt_port)
            == (accepted.est_url, accepted.mqtt_host, accepted.mqtt_port)
            and config.ca_file.exists()
            and read_file(config.ca_file) == _pem(accepted.anchors)
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._refusals():
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            must_be_ours(self._home)
            with self._store.lock():
                yield

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Translate errors of the home into the protocol's."""
        try:
            yield
        except BadConfig as error:
            raise BoardRefused(FailureCode.REFUSED, error.message) from error
        except ClientError as error:
            raise BoardRefused(FailureCode.STORAGE, error.message) from error
        except OSError as error:
            raise BoardRefused(FailureCode.STORAGE, f"The board's storage failed: {error.strerror}.") from error


def _pem(certificates: tuple[x509.Certificate, ...]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
