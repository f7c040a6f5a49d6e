"""What a station's dialogue is told, and what it tells."""

from dataclasses import dataclass

from cryptography import x509

from fleet.wire.csr import Csr
from fleet.wire.serial.messages import Blob, Facts


@dataclass(frozen=True, slots=True)
class Order:
    """What the station is to make of the board on the line."""

    device_id: str
    key_type: str = "EC-P256"
    """In the words of `fleet.wire.csr.Csr.key_type`."""
    station: str = ""
    """How the station calls itself, for the board's log."""
    replace: bool = False
    """Whether the board may give up another identity for this one."""
    hardware_serial: str = ""
    """The one the board must have, "" for any."""
    board_model: str = ""
    """What the board must say of itself, "" for anything. The fleet may know its devices by another model."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What goes down to the board: its certificate, whom it is to trust, and where its servers are."""

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
    """A full frame each way takes 2.2 s at 9600 baud, 0.2 s at 115200; a copy too many does no harm."""
    board: float = 30.0
    """For an answer to Hello: the board may still have to boot."""
    key: float = 120.0
    """For an answer to MakeKey: RSA on a microcontroller."""
    answer: float = 15.0
    """For any other answer, in which flash may be erased or a signature made."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """The board has said who it is."""

    facts: Facts
    session: bytes


@dataclass(frozen=True, slots=True)
class CsrReceived:
    """The CSR is here, checked. Enroll it, then call `deliver`. Comes again when the board has restarted."""

    csr: Csr


@dataclass(frozen=True, slots=True)
class Written:
    """A blob is on the board in full."""

    blob: Blob
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The board has checked and stored the identity."""

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Proved:
    """The board has proved that it holds the certificate's private key."""

    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Restarted:
    """The board had forgotten the session: the dialogue begins again."""

    sessions: int
    """How many sessions there have been, the new one included."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The identity is the board's active one. The end."""

    facts: Facts
    fingerprint: bytes


Event = Greeted | CsrReceived | Written | Stored | Proved | Restarted | Provisioned
