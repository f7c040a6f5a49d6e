"""Where a listener without TLS binds, who may connect there, and the file with the proxy's secret."""

import grp
import os
import socket
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fleet.config.addresses import parse_local_address
from fleet.domain.errors import Invalid, Unavailable
from fleet.home.proxy_secrets import ProxySecrets, proxy_secrets
from fleet.runtime.local_listener import bound

SOCKET = parse_local_address("unix:auth.sock")


def test_off_binds_nothing(tmp_path: Path) -> None:
    with bound("forward_auth", None, tmp_path) as taken:
        assert taken is None


def test_a_socket_is_private_from_the_first_moment_and_removed_at_the_end(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with bound("forward_auth", SOCKET, tmp_path):
            assert stat.S_IMODE((tmp_path / "auth.sock").stat().st_mode) == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not (tmp_path / "auth.sock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to any group")
def test_a_group_may_connect(tmp_path: Path) -> None:
    with bound("forward_auth", SOCKET, tmp_path, "daemon"):
        found = (tmp_path / "auth.sock").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 1)
    with pytest.raises(Invalid) as caught, bound("forward_auth", SOCKET, tmp_path, "no such group"):
        pass
    assert caught.value.code == "no-such-group"


def test_a_socket_that_was_left_is_replaced_and_a_living_one_or_a_file_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "auth.sock"))
    with bound("forward_auth", SOCKET, tmp_path):
        with pytest.raises(Unavailable) as caught, bound("forward_auth", SOCKET, tmp_path):
            pass
        assert caught.value.code == "cannot-listen"
        assert "unix:auth.sock: address already in use" in caught.value.message
    (tmp_path / "auth.sock").write_text("mine")
    with pytest.raises(Unavailable, match="file exists"), bound("forward_auth", SOCKET, tmp_path):
        pass
    assert (tmp_path / "auth.sock").read_text() == "mine"
    missing = parse_local_address("unix:nowhere/auth.sock")
    with pytest.raises(Unavailable, match="no such file"), bound("forward_auth", missing, tmp_path):
        pass
    long = parse_local_address(f"unix:{'a' * 120}")
    with pytest.raises(Unavailable, match="too long"), bound("forward_auth", long, tmp_path):
        pass


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with bound("forward_auth", parse_local_address("127.0.0.1:0"), tmp_path) as taken:
        assert taken is not None
        again = parse_local_address(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable, match="already in use"), bound("forward_auth", again, tmp_path):
            pass


def test_secrets_are_read(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_bytes(b"0123456789abcdef\n")
    assert proxy_secrets(file) == (b"0123456789abcdef",)
    file.write_bytes(b"0123456789abcdef\r\n\r\nfedcba9876543210")
    assert proxy_secrets(file) == (b"0123456789abcdef", b"fedcba9876543210")


def test_secrets_are_read_again_and_kept_when_the_file_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_bytes(b"0123456789abcdef\n")
    secrets = ProxySecrets(file)
    file.write_bytes(b"0123456789abcdef\nfedcba9876543210\n")
    secrets.reload()
    both = (b"0123456789abcdef", b"fedcba9876543210")
    assert secrets.current == both
    file.write_bytes(b"tooshort\n")
    secrets.reload()
    assert secrets.current == both
    assert "event=proxy-secrets outcome=failed kept=old" in caplog.text
    assert "tooshort" not in caplog.text
    none = ProxySecrets(None)
    none.reload()
    assert none.current == ()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n", b"short\n", b"0123456789 abcdef", b"0123456789abcde\xff"),
        *(b"a" * 257, b"a" * 5000, b"a" * 16 + b"\0", b"\n".join([b"a" * 16] * 3)),
    ],
)
def test_a_file_that_holds_no_secret(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with pytest.raises(Invalid) as caught:
        proxy_secrets(file)
    assert caught.value.code == "bad-secret-file"
    assert (
        content == b"" or content.decode("latin-1").strip() == "" or content.decode("latin-1") not in str(caught.value)
    )


def test_a_secret_file_that_others_can_read_or_that_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"0123456789abcdef\n")
    file.chmod(0o640)
    for path, says in ((file, "read by others"), (tmp_path / "none", "No such file")):
        with pytest.raises(Invalid, match=says):
            proxy_secrets(path)


def test_a_folder_that_the_group_cannot_enter_is_named(caplog: pytest.LogCaptureFixture) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    for mode, is_closed in ((0o710, False), (0o700, True)):
        with TemporaryDirectory() as made:  # beneath tmp_path some folders are the tests' user's alone
            home = Path(made).resolve()
            home.chmod(mode)
            caplog.clear()
            with bound("forward_auth", SOCKET, home, group):
                assert (f"cannot enter {home}" in caplog.text) is is_closed
