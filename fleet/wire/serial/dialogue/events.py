"""Inputs and events of a station's dialogue."""

from dataclasses import dataclass

from cryptography import x509

from fleet.wire.csr import Csr
from fleet.wire.serial.messages import Blob, DeviceInfo


@dataclass(frozen=True, slots=True)
class ProvisioningOrder:
    """The device that a board is to become, and the board that is expected."""

    device_id: str
    key_type: str = "EC-P256"
    """As in `fleet.wire.csr.Csr.key_type`."""
    station: str = ""
    """The station's name, for the board's log."""
    replace: bool = False
    """Whether the board may replace another identity by this one."""
    hardware_serial: str = ""
    """Expected of the board; "" for any."""
    board_model: str = ""
    """Expected of the board; "" for any. Not the fleet's model, which may be named otherwise."""


@dataclass(frozen=True, slots=True)
class ProvisioningData:
    """What a board is given: its certificate, its trust anchors, and the addresses of its servers."""

    chain: tuple[x509.Certificate, ...]
    """The device's own certificate first, then the issuing ones."""
    anchors: tuple[x509.Certificate, ...]
    est_url: str
    mqtt_host: str
    mqtt_port: int


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds."""

    retransmit: float = 2.0
    """A full frame each way takes 2.2 s at 9600 baud, 0.2 s at 115200; a needless copy does no harm."""
    board: float = 30.0
    """For an answer to Hello: the board may still have to boot."""
    key: float = 120.0
    """For an answer to MakeKey: RSA key generation on a microcontroller."""
    answer: float = 15.0
    """For any other answer: the board may erase flash or sign."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """The board has answered Hello."""

    info: DeviceInfo
    session: bytes


@dataclass(frozen=True, slots=True)
class CsrReceived:
    """The CSR has arrived and is checked. Enroll it, then call `deliver`. Repeated after a restart of the board."""

    csr: Csr


@dataclass(frozen=True, slots=True)
class Written:
    """The board has received a blob completely."""

    blob: Blob
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The board has checked and stored its certificate."""

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Proved:
    """The board has proved that it holds the certificate's private key."""

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Restarted:
    """The board has lost the session: the dialogue begins again."""

    sessions: int
    """Number of sessions so far, including the new one."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The new identity is active. The last event."""

    info: DeviceInfo
    fingerprint: bytes


Event = Greeted | CsrReceived | Written | Stored | Proved | Restarted | Provisioned
