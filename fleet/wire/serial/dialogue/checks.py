"""What a station checks of a board, its CSR and the certificate that comes back: one rule each, all raise."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.wire.csr import Csr, decode_csr
from fleet.wire.errors import WireError
from fleet.wire.names import names_of_certificate
from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.errors import BadBoard, WrongIdentity
from fleet.wire.serial.dialogue.events import Order
from fleet.wire.serial.messages import FailureCode

COMMON_NAME = "2.5.4.3"
SERIAL_NUMBER = "2.5.4.5"


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of its DER."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def board_is_wanted(facts: m.Facts, order: Order, before: m.Facts | None) -> None:
    """The board is the one that was ordered, and the one that was there before it restarted.

    Raises: BadBoard.
    """
    if facts.version != m.VERSION:
        raise BadBoard(FailureCode.UNSUPPORTED, "The board chose a version that was not offered.")
    for what, said, wanted in (
        ("hardware serial", facts.hardware_serial, order.hardware_serial),
        ("model", facts.model, order.board_model),
    ):
        if wanted and said != wanted:
            raise BadBoard(FailureCode.WRONG_DEVICE, f"The board's {what} is {said!r}, not {wanted!r}.")
    if before is not None and (before.hardware_serial, before.model) != (facts.hardware_serial, facts.model):
        raise BadBoard(FailureCode.WRONG_DEVICE, "Another board has taken the place of the first one.")
    if order.key_type not in facts.key_types:
        raise BadBoard(
            FailureCode.UNSUPPORTED,
            f"The board makes no {order.key_type} key, only: {', '.join(facts.key_types)}.",
        )
    if facts.state == m.PROVISIONED and facts.device_id != order.device_id and not order.replace:
        raise BadBoard(FailureCode.ALREADY_PROVISIONED, f"The board is provisioned already, as {facts.device_id!r}.")


def wanted_csr(data: bytes, order: Order, facts: m.Facts) -> Csr:
    """The CSR in `data`, when its own signature holds and it names this device and no other.

    Raises: BadBoard.
    """
    try:
        csr = decode_csr(data)
    except WireError as error:
        raise BadBoard(FailureCode.MALFORMED, f"The board's CSR is refused: {error}") from error
    names = [value for oid, value in csr.subject if oid == COMMON_NAME]
    if names != [order.device_id]:
        raise BadBoard(FailureCode.WRONG_DEVICE, "The CSR's common name is not the device id.")
    serials = [value for oid, value in csr.subject if oid == SERIAL_NUMBER]
    if serials not in ([], [facts.hardware_serial]):
        raise BadBoard(FailureCode.WRONG_DEVICE, "The CSR's serial number is not the one that the board said.")
    if csr.key_type != order.key_type:
        raise BadBoard(FailureCode.UNSUPPORTED, f"The board made a {csr.key_type} key, not {order.key_type}.")
    return csr


def certificate_fits(certificate: x509.Certificate, csr: Csr, order: Order) -> None:
    """The certificate is for the CSR's key and the ordered device.

    Raises: WrongIdentity; WireError when the certificate's names can't be read.
    """
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != csr.spki_der:
        raise WrongIdentity(FailureCode.KEY_MISMATCH, "The certificate is for another key than the board's.")
    subject, _ = names_of_certificate(certificate)
    if [value for oid, value in subject if oid == COMMON_NAME] != [order.device_id]:
        raise WrongIdentity(FailureCode.WRONG_DEVICE, "The certificate names another device.")
