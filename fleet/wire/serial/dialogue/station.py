"""Sans-I/O dialogue, the station's side: stop-and-wait requests until the board is provisioned.

    dialogue = StationDialogue(order, random=os.urandom)
    dialogue.begin(now)
    while not dialogue.ended:
        port.write(dialogue.data_to_send())
        for event in dialogue.feed(port.read(), now):
            ...                                   # CsrReceived: enroll it, then dialogue.deliver(data, now)
        dialogue.tick(now)

Times are seconds of a monotonic clock.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire.csr import Csr
from fleet.wire.errors import TooLarge, WireError
from fleet.wire.serial import messages as m
from fleet.wire.serial.blobs import join_certificates
from fleet.wire.serial.dialogue import checks
from fleet.wire.serial.dialogue.errors import BadBoard, BoardRefused, DialogueError, NoAnswer, WrongCertificate
from fleet.wire.serial.dialogue.events import (
    CsrReceived,
    Event,
    Greeted,
    Proved,
    Provisioned,
    ProvisioningData,
    ProvisioningOrder,
    Restarted,
    Stored,
    Timing,
    Written,
)
from fleet.wire.serial.field_types import printable
from fleet.wire.serial.frames import FrameReader, encode_frame
from fleet.wire.serial.messages import Blob, FailureCode, Message, decode, encode, read_header
from fleet.wire.serial.possession import signed_octets, verify

SESSIONS_MAX = 5  # a board that restarts more often in one run is faulty

ANSWERS: dict[type[m.Request], type[m.Answer]] = {
    m.Hello: m.DeviceInfo,
    m.MakeKey: m.CsrReady,
    m.ReadCsr: m.CsrChunk,
    m.WriteBegin: m.WriteReady,
    m.WriteChunk: m.ChunkStored,
    m.Install: m.Installed,
    m.Prove: m.Proof,
    m.Finish: m.Finished,
}
"""The answer to each request, beside Failed. Any other violates the protocol."""


@dataclass(slots=True)
class _Outstanding:
    """The request that awaits its answer."""

    request: m.Request
    frame: bytes
    resend_at: float
    give_up_at: float


class StationDialogue:
    """Provisions the board at the other end according to `order`.

    `random(n)` returns n unpredictable octets, for sessions and challenges.
    """

    def __init__(self, order: ProvisioningOrder, random: Callable[[int], bytes], timing: Timing | None = None) -> None:
        self.reader = FrameReader()
        self.ended = False
        self.info: m.DeviceInfo | None = None
        self._order = order
        self._random = random
        self._timing = timing or Timing()
        self._outgoing = bytearray()
        self._outstanding: _Outstanding | None = None
        self.session = b""
        """The current session id."""
        self._sessions = 0
        self._step = 0
        self._csr_size = 0
        self._csr_sha256 = b""
        self._csr_data = bytearray()
        self._csr: Csr | None = None
        self._data: ProvisioningData | None = None
        self._fingerprint = b""
        self._blobs: dict[Blob, bytes] = {}
        self._challenge = b""
        self._handlers: dict[type[m.Answer], Callable[..., list[Event]]] = {
            m.DeviceInfo: self._on_device_info,
            m.CsrReady: self._on_csr_ready,
            m.CsrChunk: self._on_csr_chunk,
            m.WriteReady: self._on_write_ready,
            m.ChunkStored: self._on_chunk_stored,
            m.Installed: self._on_installed,
            m.Proof: self._on_proof,
            m.Finished: self._on_finished,
        }

    def begin(self, now: float) -> None:
        """Open a session. Call once: the dialogue itself opens another after a restart of the board."""
        self.session = self._random(m.SESSION_SIZE)
        self._sessions += 1
        self._step = -1
        self._csr = None
        self._ask(m.Hello((m.VERSION,), printable(self._order.station, 64)), now)

    def data_to_send(self) -> bytes:
        """The octets to write to the line now. Each is returned once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def next_timeout(self) -> float | None:
        """When `tick` must be called at the latest; None while no answer is awaited."""
        if self._outstanding is None:
            return None
        return min(self._outstanding.resend_at, self._outstanding.give_up_at)

    def tick(self, now: float) -> None:
        """Retransmit the request if it has not been answered in time. Raises: NoAnswer once its deadline has passed."""
        waiting = self._outstanding
        if waiting is None:
            return
        if now >= waiting.give_up_at:
            name = type(waiting.request).__name__
            error = NoAnswer(FailureCode.STOPPED, f"The board did not answer {name}.")
            self._fail(error)
            raise error
        if now >= waiting.resend_at:
            waiting.resend_at = now + self._timing.retransmit
            self._outgoing += waiting.frame

    def feed(self, data: bytes, now: float) -> list[Event]:
        """The events that `data`, read from the line, causes.

        Raises: DialogueError; the dialogue has then ended, and `data_to_send` holds an Abort for the board.
        """
        events: list[Event] = []
        for payload in self.reader.feed(data):
            if self.ended:
                break
            try:
                events += self._on_payload(payload, now)
            except DialogueError as error:
                self._fail(error)
                raise
        return events

    def deliver(self, data: ProvisioningData, now: float) -> None:
        """Send the issued certificate to the board. Call once after each CsrReceived.

        Raises: WrongCertificate if it is not for this device id and key, or the blobs are too large.
        """
        if self._csr is None:
            raise ValueError("deliver() answers CsrReceived")
        try:
            checks.certificate_fits(data.chain[0], self._csr, self._order)
            self._blobs = {
                Blob.CHAIN: join_certificates(c.public_bytes(Encoding.DER) for c in data.chain),
                Blob.ANCHORS: join_certificates(c.public_bytes(Encoding.DER) for c in data.anchors),
            }
        except WireError as error:
            code = FailureCode.TOO_LARGE if isinstance(error, TooLarge) else FailureCode.BAD_CERTIFICATE
            failure = WrongCertificate(code, str(error))
            self._fail(failure)
            raise failure from error
        except DialogueError as error:
            self._fail(error)
            raise
        self._data = data
        self._fingerprint = checks.fingerprint(data.chain[0])
        self._begin_blob(Blob.CHAIN, now)

    def abort(self, text: str) -> None:
        """Give up: send one Abort, which is not answered."""
        if not self.ended:
            self._fail(NoAnswer(FailureCode.STOPPED, text))

    def _ask(self, request: m.Request, now: float) -> None:
        self._step += 1
        frame = encode_frame(encode(Message(self.session, self._step, request)))
        match request:
            case m.Hello():
                patience = self._timing.board
            case m.MakeKey():
                patience = self._timing.key
            case _:
                patience = self._timing.answer
        self._outstanding = _Outstanding(request, frame, now + self._timing.retransmit, now + patience)
        self._outgoing += frame

    def _fail(self, error: DialogueError) -> None:
        self.ended = True
        self._outstanding = None
        if self.session:
            abort = m.Abort(error.code, printable(error.message, m.REASON_SIZE_MAX))
            self._outgoing += encode_frame(encode(Message(self.session, self._step, abort)))

    def _on_payload(self, payload: bytes, now: float) -> list[Event]:
        waiting = self._outstanding
        try:
            header = read_header(payload)
        except WireError:
            return []  # not of our session
        if waiting is None or (header.session, header.step) != (self.session, self._step):
            return []  # a late copy, or another station's
        try:
            answer = decode(payload).body
        except WireError as error:
            raise BadBoard(FailureCode.MALFORMED, f"The board's answer cannot be decoded: {error}") from error
        if isinstance(answer, m.REQUESTS):
            return []  # our own request, on a line that echoes
        if isinstance(answer, m.Failed):
            return self._on_failed(answer, waiting.request, now)
        if not isinstance(answer, ANSWERS[type(waiting.request)]):
            raise BadBoard(
                FailureCode.OUT_OF_ORDER,
                f"The board answered {type(waiting.request).__name__} with {type(answer).__name__}.",
            )
        self._outstanding = None
        return self._handlers[type(answer)](answer, waiting.request, now)

    def _on_failed(self, failed: m.Failed, request: m.Request, now: float) -> list[Event]:
        if failed.code == FailureCode.NO_SESSION and not isinstance(request, m.Hello):
            if self._sessions >= SESSIONS_MAX:
                raise NoAnswer(FailureCode.NO_SESSION, "The board keeps restarting.")
            self.begin(now)
            return [Restarted(self._sessions)]
        raise BoardRefused(failed.code, f"The board refused {type(request).__name__}: {failed.text}")

    def _on_device_info(self, info: m.DeviceInfo, request: m.Hello, now: float) -> list[Event]:
        checks.board_is_wanted(info, self._order, self.info)
        self.info = info
        self._ask(m.MakeKey(self._order.device_id, self._order.key_type, self._order.replace), now)
        return [Greeted(info, self.session)]

    def _on_csr_ready(self, ready: m.CsrReady, request: m.MakeKey, now: float) -> list[Event]:
        self._csr_size, self._csr_sha256 = ready.size, ready.sha256
        self._csr_data.clear()
        self._ask(m.ReadCsr(0), now)
        return []

    def _on_csr_chunk(self, chunk: m.CsrChunk, request: m.ReadCsr, now: float) -> list[Event]:
        self._csr_data += chunk.data
        if chunk.offset != request.offset or len(self._csr_data) > self._csr_size:
            raise BadBoard(FailureCode.OUT_OF_ORDER, "The board sent another part of its CSR than was requested.")
        if len(self._csr_data) < self._csr_size:
            self._ask(m.ReadCsr(len(self._csr_data)), now)
            return []
        data = bytes(self._csr_data)
        if hashlib.sha256(data).digest() != self._csr_sha256:
            raise BadBoard(FailureCode.MALFORMED, "The CSR's digest does not match.")
        self._csr = checks.wanted_csr(data, self._order, self._board())
        return [CsrReceived(self._csr)]

    def _begin_blob(self, blob: Blob, now: float) -> None:
        data = self._blobs[blob]
        self._ask(m.WriteBegin(blob, len(data), hashlib.sha256(data).digest()), now)

    def _on_write_ready(self, ready: m.WriteReady, request: m.WriteBegin, now: float) -> list[Event]:
        self._send_chunk(Blob(request.blob), 0, now)
        return []

    def _send_chunk(self, blob: Blob, offset: int, now: float) -> None:
        data = self._blobs[blob][offset : offset + self._board().chunk_size_max]
        self._ask(m.WriteChunk(blob, offset, data), now)

    def _on_chunk_stored(self, stored: m.ChunkStored, request: m.WriteChunk, now: float) -> list[Event]:
        blob, received = Blob(request.blob), request.offset + len(request.data)
        if (stored.blob, stored.received) != (request.blob, received):
            raise BadBoard(FailureCode.OUT_OF_ORDER, "The board acknowledged another chunk than was sent.")
        if received < len(self._blobs[blob]):
            self._send_chunk(blob, received, now)
            return []
        if blob is Blob.CHAIN:
            self._begin_blob(Blob.ANCHORS, now)
        else:
            data = self._delivered()
            self._ask(m.Install(data.est_url, data.mqtt_host, data.mqtt_port), now)
        return [Written(blob, received)]

    def _on_installed(self, installed: m.Installed, request: m.Install, now: float) -> list[Event]:
        if installed.fingerprint != self._fingerprint:
            raise BadBoard(FailureCode.BAD_CERTIFICATE, "The board stored another certificate than was sent.")
        self._challenge = self._random(m.CHALLENGE_SIZE)
        self._ask(m.Prove(self._challenge), now)
        return [Stored(installed.fingerprint)]

    def _on_proof(self, proof: m.Proof, request: m.Prove, now: float) -> list[Event]:
        key = self._delivered().chain[0].public_key()
        try:
            verify(key, proof.signature, signed_octets(self.session, self._challenge))
        except WireError as error:
            raise BadBoard(FailureCode.BAD_PROOF, str(error)) from error
        self._ask(m.Finish(), now)
        return [Proved(self._fingerprint)]

    def _on_finished(self, finished: m.Finished, request: m.Finish, now: float) -> list[Event]:
        if (finished.device_id, finished.fingerprint) != (self._order.device_id, self._fingerprint):
            raise BadBoard(FailureCode.WRONG_DEVICE, "The board activated another identity than was sent.")
        self.ended = True
        return [Provisioned(self._board(), self._fingerprint)]

    def _board(self) -> m.DeviceInfo:
        if self.info is None:
            raise RuntimeError("nothing is asked of the board before DeviceInfo")
        return self.info

    def _delivered(self) -> ProvisioningData:
        if self._data is None:
            raise RuntimeError("nothing is written to the board before deliver()")
        return self._data
