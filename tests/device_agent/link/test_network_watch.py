"""What the kernel reports of links and addresses: from octets, and from a real kernel."""

import shutil
import socket
import struct
import subprocess
import sys

import pytest

from device_agent.link.network_watch import (
    DELETED_ADDRESS,
    DELETED_LINK,
    NEW_ADDRESS,
    NEW_LINK,
    RUNNING,
    KnownNetwork,
    NetworkChange,
)

TENTATIVE = 0x40
NOTHING = NetworkChange()


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


def link(kind: int, index: int, flags: int) -> bytes:
    return message(kind, struct.pack("=BxHiII", 0, 1, index, flags, 0))


def address(kind: int, text: str, flags: int = 0, *, attribute: int = 1, peer: str = "") -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET

    def attributed(number: int, value: str) -> bytes:
        raw = socket.inet_pton(family, value)
        return struct.pack("=HH", 4 + len(raw), number) + raw

    body = (attributed(1, peer) if peer else b"") + attributed(2 if peer else attribute, text)
    return message(kind, struct.pack("=BBBBi", family, 24, flags, 0, 2) + body)


def test_a_link_that_comes_up_is_an_improvement_once() -> None:
    known = KnownNetwork()
    up, down = link(NEW_LINK, 2, RUNNING), link(NEW_LINK, 2, 0)
    answers = [known.feed(data).improved for data in (up, up, down, up, link(DELETED_LINK, 2, RUNNING), up)]
    assert answers == [True, False, False, True, False, True]


def test_an_address_counts_once_it_can_be_used() -> None:
    known = KnownNetwork()
    six = "2001:db8::7"
    assert known.feed(address(NEW_ADDRESS, six, TENTATIVE)) == NOTHING
    assert known.feed(address(NEW_ADDRESS, six)).improved
    assert known.feed(address(NEW_ADDRESS, six)) == NOTHING  # as each router advertisement repeats
    assert known.feed(address(DELETED_ADDRESS, six)).gone == {six}
    assert known.feed(address(NEW_ADDRESS, "10.0.0.7", peer="10.0.0.1")).improved
    assert known.feed(address(DELETED_ADDRESS, "10.0.0.7", peer="10.0.0.1")).gone == {"10.0.0.7"}


def test_an_address_that_is_back_in_the_same_datagram_is_not_gone() -> None:
    data = address(DELETED_ADDRESS, "10.0.0.7") + address(NEW_ADDRESS, "10.0.0.7")
    assert KnownNetwork().feed(data) == NetworkChange(improved=True)


def test_messages_cut_at_every_octet_are_read_as_far_as_they_go() -> None:
    whole = link(NEW_LINK, 2, 0) + address(DELETED_ADDRESS, "10.0.0.7") + address(NEW_ADDRESS, "::7")
    for length in range(len(whole) + 1):
        change = KnownNetwork().feed(whole[:length])
        assert change.improved == (length == len(whole))
        assert change.gone <= {"10.0.0.7"}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("=IHHII", 0, NEW_LINK, 0, 0, 0) * 3,
        message(NEW_ADDRESS, struct.pack("=BBBBi", 2, 24, 0, 0, 2) + struct.pack("=HH", 0, 1)),
        message(NEW_ADDRESS, struct.pack("=BBBBi", 2, 24, 0, 0, 2) + struct.pack("=HH", 7, 1) + b"abc"),
        message(99, b"x"),
        b"\xff" * 64,
    ],
)
def test_what_cannot_be_read_changes_nothing(data: bytes) -> None:
    assert KnownNetwork().feed(data) == NOTHING


IN_A_NAMESPACE = """
import select, subprocess
from device_agent.link.network_watch import NetworkWatch
watch = NetworkWatch()
assert watch.socket is not None
def after(*words):
    subprocess.run(("ip", *words), check=True)
    improved, gone = False, frozenset()
    while select.select([watch.socket], [], [], 0.2)[0]:
        change = watch.read()
        improved, gone = improved or change.improved, gone | change.gone
    return improved, "10.99.0.7" in gone
assert after("link", "add", "veth7", "type", "veth", "peer", "name", "veth8") == (False, False)
assert after("addr", "add", "10.99.0.7/24", "dev", "veth7") == (True, False)
assert after("addr", "del", "10.99.0.7/24", "dev", "veth7") == (False, True)
"""


def test_a_real_kernel_reports_them() -> None:
    alone = ["unshare", "-n", sys.executable]
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("ip or unshare is not installed")
    probe = ["unshare", "-n", "ip", "link", "add", "veth7", "type", "veth", "peer", "name", "veth8"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine allows no network namespace with a veth pair")
    done = subprocess.run([*alone, "-c", IN_A_NAMESPACE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
