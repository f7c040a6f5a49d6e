"""Boards that are not what they claim to be, and certificates that are not theirs."""

import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire.csr import Csr, build_csr
from fleet.wire.serial import messages as m
from fleet.wire.serial.dialogue.errors import BadBoard, BoardRefused, DialogueError, WrongCertificate
from fleet.wire.serial.dialogue.events import ProvisioningData
from fleet.wire.serial.frames import FrameReader
from fleet.wire.serial.messages import FailureCode, decode
from tests.unknown_curve import with_unknown_curve
from tests.wire.serial_line import CA, CA_KEY, ORDER, Factory, MemoryBoard, certificate


def fails(factory: Factory, code: FailureCode, kind: type[DialogueError] = BadBoard) -> DialogueError:
    with pytest.raises(kind) as caught:
        factory.run()
    assert caught.value.code == code
    assert factory.station.ended
    assert factory.station.next_timeout() is None
    last = decode(FrameReader().feed(factory.station.data_to_send())[-1]).body
    assert isinstance(last, m.Abort)
    assert last.code == code
    assert factory.board.active is None
    return caught.value


def test_a_proof_by_another_key() -> None:
    board = MemoryBoard(signing_key=ec.generate_private_key(ec.SECP256R1()))
    error = fails(Factory(board), FailureCode.BAD_PROOF)
    assert error.code_name == "bad-proof"


def test_a_proof_of_another_session_or_challenge() -> None:
    class Replaying(MemoryBoard):
        def sign(self, octets: bytes) -> bytes:
            assert octets.startswith(b"fleet-serial-possession-v1\x00")
            return super().sign(bytes(octets[:-1]) + bytes((octets[-1] ^ 1,)))

    fails(Factory(Replaying()), FailureCode.BAD_PROOF)


def test_a_proof_that_is_no_signature() -> None:
    class Rambling(MemoryBoard):
        def sign(self, octets: bytes) -> bytes:
            return b"trust me"

    fails(Factory(Rambling()), FailureCode.BAD_PROOF)


def test_a_csr_of_somebody_else() -> None:
    """The CSR is genuine, copied from another board: the name and the proof give it away."""
    stolen_key = ec.generate_private_key(ec.SECP256R1())

    class Copying(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            super().make_key(device_id, key_type, replace)
            return build_csr(stolen_key, [("2.5.4.3", name)], [])

        def install(self, identity: ProvisioningData) -> bytes:
            self.stored = identity
            return hashlib.sha256(identity.chain[0].public_bytes(Encoding.DER)).digest()

    name = "pump-8"
    fails(Factory(Copying()), FailureCode.WRONG_DEVICE)
    name = "pump-7"
    fails(Factory(Copying()), FailureCode.BAD_PROOF)


def test_a_csr_whose_signature_is_broken() -> None:
    class Sloppy(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            csr = bytearray(super().make_key(device_id, key_type, replace))
            csr[-1] ^= 1
            return bytes(csr)

    fails(Factory(Sloppy()), FailureCode.MALFORMED)


def test_a_csr_with_another_serial_than_said() -> None:
    fails(Factory(MemoryBoard(csr_serial="SN-0666")), FailureCode.WRONG_DEVICE)


def test_a_csr_with_another_kind_of_key() -> None:
    class Stronger(MemoryBoard):
        def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
            return build_csr(ec.generate_private_key(ec.SECP384R1()), [("2.5.4.3", device_id)], [])

    fails(Factory(Stronger()), FailureCode.UNSUPPORTED)


def test_a_board_with_another_serial_than_its_label() -> None:
    error = fails(Factory(order=replace(ORDER, hardware_serial="SN-0002")), FailureCode.WRONG_DEVICE)
    assert "'SN-0001', not 'SN-0002'" in error.message
    fails(Factory(order=replace(ORDER, board_model="valve")), FailureCode.WRONG_DEVICE)
    fails(Factory(order=replace(ORDER, key_type="Ed25519")), FailureCode.UNSUPPORTED)


def test_a_board_taken_out_and_another_put_in() -> None:
    factory = Factory(restarts_at=frozenset({8}))

    class Swapped(MemoryBoard):
        def device_info(self) -> m.DeviceInfo:
            return replace(super().device_info(), hardware_serial="SN-0002" if self.key else "SN-0001")

    factory.board = Swapped()
    error = fails(factory, FailureCode.WRONG_DEVICE)
    assert "exchanged for another" in error.message


def test_a_board_that_says_it_stored_another_certificate() -> None:
    class Confused(MemoryBoard):
        def install(self, identity: ProvisioningData) -> bytes:
            return bytes(32)

    fails(Factory(Confused()), FailureCode.BAD_CERTIFICATE)


def test_a_certificate_for_another_board_never_goes_down() -> None:
    class Mixed(Factory):
        def enroll(self, csr: Csr) -> ProvisioningData:
            delivery = super().enroll(csr)
            return replace(delivery, chain=(wrong, CA))

    wrong = certificate("pump-7", CA_KEY.public_key())
    fails(Mixed(), FailureCode.KEY_MISMATCH, WrongCertificate)

    wrong = with_unknown_curve(wrong)
    fails(Mixed(), FailureCode.BAD_CERTIFICATE, WrongCertificate)

    class Renamed(Factory):
        def enroll(self, csr: Csr) -> ProvisioningData:
            key = x509.load_der_x509_csr(csr.der).public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            return replace(super().enroll(csr), chain=(certificate("pump-8", key), CA))

    fails(Renamed(), FailureCode.WRONG_DEVICE, WrongCertificate)

    class Long(Factory):
        def enroll(self, csr: Csr) -> ProvisioningData:
            delivery = super().enroll(csr)
            return replace(delivery, anchors=(CA,) * (m.CERTIFICATES_MAX + 1))

    fails(Long(), FailureCode.TOO_LARGE, WrongCertificate)


def test_a_board_that_gets_the_wrong_certificate_says_so() -> None:
    class Forgetful(MemoryBoard):
        def install(self, identity: ProvisioningData) -> bytes:
            self.key = None
            return super().install(identity)

    factory = Factory(Forgetful())
    error = fails(factory, FailureCode.KEY_MISMATCH, BoardRefused)
    assert error.message == "The board refused Install: Not my key."
