"""A device that is connected over MQTT and says nothing, until its session is ended."""

import select
import time

from OpenSSL import SSL

from hw_bench.certificates import Identity
from hw_bench.drivers.handshake import client_context, connect
from hw_bench.drivers.publish import connect_packet

READ_SIZE = 4096
CONNACK_ACCEPTED = b"\x20\x02\x00\x00"


class DeviceSession:
    """One session, let in when it is made. Raises: ConnectionError, OSError."""

    def __init__(self, device: Identity, address: tuple[str, int], tls: str) -> None:
        self.name = device.name
        self._ended = False
        self._socket = connect(address)
        self._tls = SSL.Connection(client_context(str(device.certificate), str(device.key), tls), self._socket)
        self._tls.set_connect_state()
        try:
            self._tls.sendall(connect_packet(device.name))
            answer = self._tls.recv(len(CONNACK_ACCEPTED))
        except SSL.Error as error:
            self.close()
            raise ConnectionError(f"{device.name} was not let in: {error}") from error
        if answer != CONNACK_ACCEPTED:
            self.close()
            raise ConnectionError(f"{device.name} was not let in: CONNACK {answer.hex()}")

    @property
    def silent(self) -> bool:
        """Whether it lives and nothing has come on it: neither a packet nor an end."""
        return not self._ended and not self._tls.pending() and not select.select([self._socket], [], [], 0)[0]

    def wait_for_end(self, seconds_max: float) -> bool:
        """Return when the server has ended it: True. False when it still lives after so many seconds."""
        deadline = time.monotonic() + seconds_max
        while not self._ended and select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                self._ended = not self._tls.recv(READ_SIZE)
            except SSL.WantReadError:
                continue  # a part of a record
            except SSL.Error:
                self._ended = True  # TLS is told first; TCP's end may take another moment
        return self._ended

    def close(self) -> None:
        self._socket.close()
