"""An idle MQTT session of a device, watched for its end."""

import select
import time

from OpenSSL import SSL

from hw_bench.certificates import Identity
from hw_bench.drivers.handshake import client_context, connect
from hw_bench.drivers.publish import connect_packet

READ_SIZE = 4096
CONNACK_ACCEPTED = b"\x20\x02\x00\x00"


class DeviceSession:
    """One session, connected by the constructor. Raises: ConnectionError, OSError."""

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
            raise ConnectionError(f"{device.name} was refused: {error}") from error
        if answer != CONNACK_ACCEPTED:
            self.close()
            raise ConnectionError(f"{device.name} was refused: CONNACK {answer.hex()}")

    @property
    def silent(self) -> bool:
        """Whether it is open and the server has sent nothing."""
        return not self._ended and not self._tls.pending() and not select.select([self._socket], [], [], 0)[0]

    def wait_for_end(self, seconds_max: float) -> bool:
        """True as soon as the server has ended it; False when it is still open after `seconds_max`."""
        deadline = time.monotonic() + seconds_max
        while not self._ended and select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                self._ended = not self._tls.recv(READ_SIZE)
            except SSL.WantReadError:
                continue  # a part of a record
            except SSL.Error:
                self._ended = True  # the TLS alert comes before the TCP close
        return self._ended

    def close(self) -> None:
        self._socket.close()
