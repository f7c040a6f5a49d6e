"""Sans-I/O dialogue, the board's side: one answer to each request, and the same answer to a repeated request."""

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography import x509

from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.serial import messages as m
from fleet.wire.serial.blobs import split_certificates
from fleet.wire.serial.dialogue.errors import BoardRefused
from fleet.wire.serial.dialogue.events import ProvisioningData
from fleet.wire.serial.field_types import printable
from fleet.wire.serial.frames import FrameReader, encode_frame
from fleet.wire.serial.messages import Blob, FailureCode, Message, decode, encode, read_header
from fleet.wire.serial.possession import signed_octets


class Board(Protocol):
    """Interface of a board. Each call may be repeated with the same arguments, also after a restart, and then changes
    nothing. Each may raise BoardRefused.
    """

    def device_info(self) -> m.DeviceInfo:
        """What the board is and what it holds; the dialogue fills in `version`."""

    def make_key(self, device_id: str, key_type: str, replace: bool) -> bytes:
        """The CSR (DER) for `device_id`, with a key that is on disk when this returns and never leaves the board.

        The same device id always gets the same key, even that of an active identity.
        """

    def install(self, data: ProvisioningData) -> bytes:
        """Check `data` against the key and store it beside the active identity; SHA-256 of its certificate."""

    def sign(self, octets: bytes) -> bytes:
        """`octets` signed with the key of the stored identity."""

    def activate(self) -> None:
        """Make the stored identity the active one, in one step that is atomic under power loss."""


class State(enum.StrEnum):
    IDLE = "idle"
    GREETED = "greeted"
    KEYED = "keyed"
    INSTALLED = "installed"
    PROVED = "proved"
    FINISHED = "finished"
    FAILED = "failed"


EXPECTS: dict[State, tuple[type[m.Request], ...]] = {
    State.IDLE: (),
    State.GREETED: (m.MakeKey,),
    State.KEYED: (m.ReadCsr, m.WriteBegin, m.WriteChunk, m.Install),
    State.INSTALLED: (m.Prove,),
    State.PROVED: (m.Finish,),
    State.FINISHED: (),
    State.FAILED: (),
}
"""The requests that each state accepts. Hello begins a new session in any state, Abort ends one."""


@dataclass(slots=True)
class _Writing:
    """A blob being received."""

    size: int
    sha256: bytes
    data: bytearray

    def is_complete(self) -> bool:
        return len(self.data) == self.size


class DeviceDialogue:
    """Answers a station's requests for `board`. One session at a time."""

    def __init__(self, board: Board) -> None:
        self.reader = FrameReader()
        self.state = State.IDLE
        self._board = board
        self._session = b""
        self._step = 0
        self._request = b""
        self._answer = b""
        self._chunk_size_max = m.CHUNK_SIZE_MIN
        self._device_id = ""
        self._csr = b""
        self._fingerprint = b""
        self._writing: dict[int, _Writing] = {}
        self._handlers: dict[type[m.Request], Callable[..., m.Answer]] = {
            m.Hello: self._hello,
            m.MakeKey: self._make_key,
            m.ReadCsr: self._read_csr,
            m.WriteBegin: self._write_begin,
            m.WriteChunk: self._write_chunk,
            m.Install: self._install,
            m.Prove: self._prove,
            m.Finish: self._finish,
        }

    def feed(self, data: bytes) -> bytes:
        """The octets to send in answer to `data`, b"" if there is no answer."""
        return b"".join(self._on_payload(payload) for payload in self.reader.feed(data))

    def _on_payload(self, payload: bytes) -> bytes:
        try:
            message = decode(payload)
        except WireError as error:
            return _refuse_unreadable(payload, error)
        request = message.body
        # Default-deny: a board takes requests only. On a line that echoes, this is its own answer.
        if not isinstance(request, m.REQUESTS):
            return b""
        if isinstance(request, m.Abort):
            if message.session == self._session:
                self._forget()
            return b""
        if message.session != self._session:
            if not isinstance(request, m.Hello):
                return _frame(message, m.Failed(FailureCode.NO_SESSION, "There is no such session."))
            self._forget()
            self._session = message.session
        elif message.step < self._step:
            return b""  # a late copy of an earlier request
        elif message.step == self._step:
            if payload == self._request:
                return self._answer
            return _frame(message, m.Failed(FailureCode.OUT_OF_ORDER, "This step was used by another request."))
        self._answer = _frame(message, self._handle(message, request))
        self._step, self._request = message.step, payload
        return self._answer

    def _forget(self) -> None:
        self._session, self._step, self._request, self._answer = b"", 0, b"", b""
        self._csr = self._fingerprint = b""
        self._writing.clear()
        self.state = State.IDLE

    def _handle(self, message: Message, request: m.Request) -> m.Answer:
        try:
            greeting = isinstance(request, m.Hello) and self.state is State.IDLE
            expected_step = 0 if greeting else self._step + 1
            if message.step != expected_step or not (greeting or isinstance(request, EXPECTS[self.state])):
                raise BoardRefused(FailureCode.OUT_OF_ORDER, f"{type(request).__name__} is not expected in this state.")
            return self._handlers[type(request)](request)
        except BoardRefused as error:
            self.state = State.FAILED
            return m.Failed(error.code, printable(error.message, m.REASON_SIZE_MAX))
        except WireError as error:
            self.state = State.FAILED
            return m.Failed(_code_of(error), printable(str(error), m.REASON_SIZE_MAX))

    def _hello(self, hello: m.Hello) -> m.Answer:
        if m.VERSION not in hello.versions:
            raise BoardRefused(FailureCode.UNSUPPORTED, f"Only version {m.VERSION} is supported.")
        info = replace(self._board.device_info(), version=m.VERSION)
        self._chunk_size_max = info.chunk_size_max
        self.state = State.GREETED
        return info

    def _make_key(self, request: m.MakeKey) -> m.Answer:
        self._csr = self._board.make_key(request.device_id, request.key_type, request.replace)
        self._device_id = request.device_id
        self.state = State.KEYED
        return m.CsrReady(len(self._csr), hashlib.sha256(self._csr).digest())

    def _read_csr(self, request: m.ReadCsr) -> m.Answer:
        data = self._csr[request.offset : request.offset + self._chunk_size_max]
        if not data:
            raise BoardRefused(FailureCode.MALFORMED, "The CSR ends before that offset.")
        return m.CsrChunk(request.offset, data)

    def _write_begin(self, request: m.WriteBegin) -> m.Answer:
        self._writing[request.blob] = _Writing(request.size, request.sha256, bytearray())
        return m.WriteReady(request.blob)

    def _write_chunk(self, request: m.WriteChunk) -> m.Answer:
        blob = self._writing.get(request.blob)
        if blob is None or request.offset != len(blob.data):
            raise BoardRefused(FailureCode.OUT_OF_ORDER, "That is not the next chunk.")
        if len(request.data) > min(self._chunk_size_max, blob.size - len(blob.data)):
            raise BoardRefused(FailureCode.TOO_LARGE, "The chunk is larger than the chunk size or the blob.")
        blob.data += request.data
        if blob.is_complete() and hashlib.sha256(blob.data).digest() != blob.sha256:
            raise BoardRefused(FailureCode.MALFORMED, "The blob's digest does not match.")
        return m.ChunkStored(request.blob, len(blob.data))

    def _install(self, request: m.Install) -> m.Answer:
        self._fingerprint = self._board.install(
            ProvisioningData(
                chain=self._certificates(Blob.CHAIN),
                anchors=self._certificates(Blob.ANCHORS),
                est_url=request.est_url,
                mqtt_host=request.mqtt_host,
                mqtt_port=request.mqtt_port,
            )
        )
        self.state = State.INSTALLED
        return m.Installed(self._fingerprint)

    def _certificates(self, blob: Blob) -> tuple[x509.Certificate, ...]:
        writing = self._writing.get(blob)
        if writing is None or not writing.is_complete():
            raise BoardRefused(FailureCode.OUT_OF_ORDER, f"Blob {blob} has not been written.")
        return split_certificates(bytes(writing.data))

    def _prove(self, request: m.Prove) -> m.Answer:
        signature = self._board.sign(signed_octets(self._session, request.challenge))
        self.state = State.PROVED
        return m.Proof(signature)

    def _finish(self, _: m.Finish) -> m.Answer:
        self._board.activate()
        self.state = State.FINISHED
        return m.Finished(self._device_id, self._fingerprint)


def _frame(message: Message, answer: m.Answer) -> bytes:
    return encode_frame(encode(Message(message.session, message.step, answer)))


def _refuse_unreadable(payload: bytes, error: WireError) -> bytes:
    """A `failed` answer, if the header can be read. The session is unchanged."""
    try:
        header = read_header(payload)
    except WireError:
        return b""
    if header.kind >= m.DeviceInfo.KIND:
        return b""  # an answer, not a request
    failed = m.Failed(_code_of(error), printable(str(error), m.REASON_SIZE_MAX))
    return encode_frame(encode(Message(header.session, header.step, failed)))


def _code_of(error: WireError) -> FailureCode:
    match error:
        case Unsupported():
            return FailureCode.UNSUPPORTED
        case TooLarge():
            return FailureCode.TOO_LARGE
        case Malformed():
            return FailureCode.MALFORMED
        case _:
            return FailureCode.REFUSED
