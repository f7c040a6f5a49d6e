"""A station's checks of a board, its CSR and the issued certificate: one rule each, all raise."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire.csr import Csr, decode_csr
from fleet.wire.errors import WireError
from fleet.wire.hardware_serial import comparable
from fleet.wire.names import names_of_certificate
from fleet.wire.parsing import library_errors
from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.errors import BadBoard, WrongCertificate
from fleet.wire.serial.dialogue.events import ProvisioningOrder
from fleet.wire.serial.messages import FailureCode
from fleet.wire.spki import spki_of

COMMON_NAME = "2.5.4.3"
SERIAL_NUMBER = "2.5.4.5"


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def board_is_wanted(info: m.DeviceInfo, order: ProvisioningOrder, before: m.DeviceInfo | None) -> None:
    """The board is the one that the order names, and after a restart the same one as before. Raises: BadBoard."""
    if info.version != m.VERSION:
        raise BadBoard(FailureCode.UNSUPPORTED, "The board chose a version that was not offered.")
    said_serial, wanted_serial = comparable(info.hardware_serial), comparable(order.hardware_serial)
    for what, said, wanted, is_wanted in (
        ("hardware serial", info.hardware_serial, order.hardware_serial, said_serial == wanted_serial),
        ("model", info.model, order.board_model, info.model == order.board_model),
    ):
        if wanted and not is_wanted:
            raise BadBoard(FailureCode.WRONG_DEVICE, f"The board's {what} is {said!r}, not {wanted!r}.")
    if before is not None and (before.hardware_serial, before.model) != (info.hardware_serial, info.model):
        raise BadBoard(FailureCode.WRONG_DEVICE, "The board was exchanged for another during the run.")
    if order.key_type not in info.key_types:
        raise BadBoard(
            FailureCode.UNSUPPORTED,
            f"The board cannot generate {order.key_type} keys, only: {', '.join(info.key_types)}.",
        )
    if info.state == m.PROVISIONED and info.device_id != order.device_id and not order.replace:
        raise BadBoard(FailureCode.ALREADY_PROVISIONED, f"The board is already provisioned as {info.device_id!r}.")


def wanted_csr(data: bytes, order: ProvisioningOrder, info: m.DeviceInfo) -> Csr:
    """The CSR in `data`, if its own signature verifies and it names this device and no other. Raises: BadBoard."""
    try:
        csr = decode_csr(data)
    except WireError as error:
        raise BadBoard(FailureCode.MALFORMED, f"The board's CSR is refused: {error}") from error
    names = [value for oid, value in csr.subject if oid == COMMON_NAME]
    if names != [order.device_id]:
        raise BadBoard(FailureCode.WRONG_DEVICE, "The CSR's common name is not the device id.")
    serials = [value for oid, value in csr.subject if oid == SERIAL_NUMBER]
    if serials not in ([], [info.hardware_serial]):
        raise BadBoard(FailureCode.WRONG_DEVICE, "The CSR's serial number is not the board's hardware serial.")
    if csr.key_type != order.key_type:
        raise BadBoard(FailureCode.UNSUPPORTED, f"The board generated a {csr.key_type} key, not {order.key_type}.")
    return csr


def certificate_fits(certificate: x509.Certificate, csr: Csr, order: ProvisioningOrder) -> None:
    """The certificate is for the CSR's key and the ordered device id.

    Raises: WrongCertificate; WireError if the certificate's key or names cannot be decoded.
    """
    with library_errors("certificate"):
        spki = spki_of(certificate.public_key())
    if spki != csr.spki_der:
        raise WrongCertificate(FailureCode.KEY_MISMATCH, "The certificate is for another key than the board's.")
    subject, _ = names_of_certificate(certificate)
    if [value for oid, value in subject if oid == COMMON_NAME] != [order.device_id]:
        raise WrongCertificate(FailureCode.WRONG_DEVICE, "The certificate names another device id.")
