"""The WebSocket of a link (RFC 6455): paho's, but for how frames are read.

paho collects a whole frame, and copies what it has of it at each read: a frame of 1 MiB with many small packets would
cost it half a minute of CPU. Here a payload goes from the socket to MQTT as it arrives.
"""

from typing import Any

from device_agent.link.light_paho import paho
from device_agent.link.packet_bounds import PACKET_SIZE_MAX

FRAME_SIZE_MAX = PACKET_SIZE_MAX + 5  # bytes of payload: one packet of the largest remaining length, with its header
CONTROL_SIZE_MAX = 125  # RFC 6455, 5.5
ANSWER_SIZE_MAX = 16 * 1024  # bytes of the answer that opens it
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10
_MASKED = 0x80


class _Opening:
    """The socket while paho reads the answer, byte by byte."""

    def __init__(self, stream: Any) -> None:
        self.send = stream.send
        self._stream = stream
        self._left = ANSWER_SIZE_MAX

    def recv(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ConnectionAbortedError(f"the server's answer has more than {ANSWER_SIZE_MAX} bytes")
        data: bytes = self._stream.recv(size)
        return data


class Websocket(paho._WebsocketWrapper):
    """Refuses a frame by its header. What is refused is a ConnectionError, which ends paho's client."""

    _left = 0
    """Bytes of the current frame's payload that are not read yet."""

    def _do_handshake(self, extra_headers: Any) -> None:
        stream: Any = self._socket
        opening: Any = _Opening(stream)
        self._socket = opening
        try:
            super()._do_handshake(extra_headers)
        except (LookupError, ValueError) as error:  # a header that paho cannot take apart
            raise ConnectionAbortedError("the server's answer is none of a WebSocket") from error
        self._socket = stream

    def _recv_impl(self, length: int) -> bytes:
        if not self._left:
            self._begin_frame()
        if not self._left:
            raise BlockingIOError  # other work has its turn: a server may send any number of frames without payload
        data = self._received(min(length, self._left))
        self._left -= len(data)
        return data

    def _begin_frame(self) -> None:
        """Read a header, which may come in pieces, and answer a control frame. Raises: BlockingIOError."""
        self._fill(2)
        opcode, size, header = self._readbuffer[0] & 0x0F, self._readbuffer[1], 2
        if size & _MASKED:  # RFC 6455, 5.1
            raise ConnectionAbortedError("the server masks its frames")
        if size > CONTROL_SIZE_MAX:
            header = 4 if size == CONTROL_SIZE_MAX + 1 else 10
            self._fill(header)
            size = int.from_bytes(self._readbuffer[2:header])
        if opcode in (_CONTINUATION, _BINARY):
            if size > FRAME_SIZE_MAX:
                raise ConnectionAbortedError(f"the server sends a frame of more than {FRAME_SIZE_MAX} bytes")
            self._left = size
        elif opcode in (_CLOSE, _PING, _PONG) and size <= CONTROL_SIZE_MAX:
            self._fill(header + size)
            if opcode != _PONG:
                frame = self._create_frame(_CLOSE if opcode == _CLOSE else _PONG, self._readbuffer[header:])
                if self._sendbuffer:  # a part of its frame has been sent
                    self._sendbuffer += frame
                else:
                    self._socket.send(frame)
        else:
            raise ConnectionAbortedError("the server sends a frame that is none of MQTT over WebSocket")
        self._readbuffer = bytearray()

    def _fill(self, size: int) -> None:
        while len(self._readbuffer) < size:
            self._readbuffer += self._received(size - len(self._readbuffer))

    def _received(self, length: int) -> bytes:
        data = self._socket.recv(length)
        if not data:
            self.connected = False
            raise ConnectionAbortedError("the server ended the connection")
        return data
