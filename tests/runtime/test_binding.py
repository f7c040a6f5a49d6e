"""Which sockets an address stands for."""

import errno
import socket

import pytest

from fleet.config.addresses import Address, parse_address
from fleet.config.settings import Settings
from fleet.domain.errors import Unavailable
from fleet.runtime.binding import cannot_listen, socket_addresses
from fleet.runtime.listeners import check_distinct


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 8443)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_localhost_is_the_loopback_interface_whatever_a_resolver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "0.0.0.0", "127.0.0.1", "192.0.2.1")
    assert [place for *_, place in socket_addresses(Address("localhost", 8443))] == [("127.0.0.1", 8443)]
    assert len(socket_addresses(Address("fleet.example.com", 8443))) == 3
    resolving(monkeypatch, "192.0.2.1")
    with pytest.raises(OSError, match="no loopback address"):
        socket_addresses(Address("localhost", 8443))


@pytest.mark.parametrize(
    ("est", "mqtt", "clash"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443", True),
        ("localhost:8443", "0.0.0.0:8443", True),
        ("127.0.0.1:8443", "127.0.0.2:8443", False),
        ("0.0.0.0:8443", "[::]:8443", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_two_listeners_of_one_address_are_named(est: str, mqtt: str, clash: bool) -> None:
    settings = Settings(est=parse_address(est), mqtt=parse_address(mqtt))
    if not clash:
        check_distinct(settings)
        return
    with pytest.raises(Unavailable, match="it is the est listener's already") as caught:
        check_distinct(settings)
    assert caught.value.code == "cannot-listen"


def test_an_address_of_another_machine_is_named() -> None:
    refusal = cannot_listen("est", Address("192.0.2.1", 1), OSError(errno.EADDRNOTAVAIL, "x"))
    assert "this machine has no such address" in refusal.message
    assert refusal.advice.startswith("Choose another")
