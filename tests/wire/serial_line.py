"""A station joined to a board with no I/O, in virtual time, for tests of the dialogue."""

import datetime as dt
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fleet.wire.csr import Csr, build_csr
from fleet.wire.serial import messages as m
from fleet.wire.serial import possession
from fleet.wire.serial.dialogue.device import DeviceDialogue
from fleet.wire.serial.dialogue.errors import BoardRefused
from fleet.wire.serial.dialogue.events import (
    CsrReceived,
    Event,
    Proved,
    Provisioned,
    ProvisioningData,
    ProvisioningOrder,
)
from fleet.wire.serial.dialogue.station import StationDialogue
from fleet.wire.serial.messages import FailureCode

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ORDER = ProvisioningOrder("pump-7", station="line-1")
CA_KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(name: str, public_key: ec.EllipticCurvePublicKey, issuer: str = "ca") -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .sign(CA_KEY, hashes.SHA256())
    )


CA = certificate("ca", CA_KEY.public_key())


@dataclass
class MemoryBoard:
    """A board whose flash is this object: what it keeps survives a new DeviceDialogue."""

    serial: str = "SN-0001"
    csr_serial: str = ""
    chunk_size_max: int = 256
    key: ec.EllipticCurvePrivateKey | None = None
    signing_key: ec.EllipticCurvePrivateKey | None = None
    stored: ProvisioningData | None = None
    active: ProvisioningData | None = None
    device_id: str = ""
    keys_made: int = 0

    def device_info(self) -> m.DeviceInfo:
        state = m.PROVISIONED if self.active else m.PENDING if self.key else m.BLANK
        return m.DeviceInfo(9, self.serial, "pump", "1.0", ("EC-P256",), self.chunk_size_max, state, self.device_id)

    def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
        if self.active and device_id != self.device_id:
            if not replace:
                raise BoardRefused(FailureCode.ALREADY_PROVISIONED, "I am somebody.")
            self.key, self.active = None, None
        if self.key is None:
            self.key = ec.generate_private_key(ec.SECP256R1())
            self.keys_made += 1
        self.device_id = device_id
        return build_csr(self.key, [("2.5.4.3", device_id), ("2.5.4.5", self.csr_serial or self.serial)], [])

    def install(self, identity: ProvisioningData) -> bytes:
        if self.key is None or identity.chain[0].public_key() != self.key.public_key():
            raise BoardRefused(FailureCode.KEY_MISMATCH, "Not my key.\r\n")
        self.stored = identity
        return hashlib.sha256(identity.chain[0].public_bytes(Encoding.DER)).digest()

    def sign(self, octets: bytes) -> bytes:
        key = self.signing_key or self.key
        assert key
        return possession.sign(key, octets)

    def activate(self) -> None:
        self.active = self.stored


Fault = Callable[[int, bytes], list[bytes]]
"""(position of the frame on the line, the frame) -> what arrives instead."""


def unharmed(_: int, frame: bytes) -> list[bytes]:
    return [frame]


def frames_of(stream: bytes) -> list[bytes]:
    return re.findall(rb"\x00[^\x00]+\x00", stream)


@dataclass
class Factory:
    """A line between a station and a board, in virtual time."""

    board: Any = field(default_factory=MemoryBoard)
    """A Board; MemoryBoard where its flash is looked into."""
    order: ProvisioningOrder = ORDER
    fault: Fault = unharmed
    restarts_at: frozenset[int] = frozenset()
    """Positions before which the board loses its memory."""
    stop_at: int | None = None
    """The position before which the station loses its power."""
    enrolled: list[Csr] = field(default_factory=list)
    positions: Iterator[int] = field(default_factory=itertools.count)
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    now: float = 0.0

    def run(self) -> list[Event]:
        self.device = DeviceDialogue(self.board)
        self.station = StationDialogue(self.order, self.chance.randbytes)
        self.station.begin(self.now)
        events: list[Event] = []
        while not self.station.ended:
            sent = self.station.data_to_send()
            if not sent and (timeout := self.station.next_timeout()) is not None:
                self.now = timeout
                self.station.tick(self.now)
            for frame in frames_of(sent):
                if (arrived := self._carry(frame)) is None:
                    return events
                for answer in frames_of(b"".join(self.device.feed(piece) for piece in arrived)):
                    if (up := self._carry(answer)) is None:
                        return events
                    for event in self.station.feed(b"".join(up), self.now):
                        events.append(event)
                        if isinstance(event, CsrReceived):
                            self.station.deliver(self.enroll(event.csr), self.now)
                    if self.station.ended:
                        return events
        return events

    def _carry(self, frame: bytes) -> list[bytes] | None:
        position = next(self.positions)
        if position in self.restarts_at:
            self.device = DeviceDialogue(self.board)
        if position == self.stop_at:
            return None
        return self.fault(position, frame)

    def enroll(self, csr: Csr) -> ProvisioningData:
        self.enrolled.append(csr)
        key = x509.load_der_x509_csr(csr.der).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        leaf = certificate(self.order.device_id, key)
        return ProvisioningData((leaf, CA), (CA,), "https://est.example:8443", "mqtt.example", 8883)


def clean_run_length() -> int:
    factory = Factory()
    factory.run()
    return next(factory.positions)


LENGTH = clean_run_length()


def assert_provisioned(factory: Factory, events: list[Event]) -> None:
    assert isinstance(events[-1], Provisioned)
    assert any(isinstance(event, Proved) for event in events)
    active = factory.board.active
    assert active
    assert active.chain[0].fingerprint(hashes.SHA256()) == events[-1].fingerprint
    assert (active.est_url, active.mqtt_host, active.mqtt_port) == ("https://est.example:8443", "mqtt.example", 8883)
    assert active.anchors == (CA,)
    assert factory.board.keys_made == 1
