"""`fleet init` and `fleet serve` as a person starts and stops them."""

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.end_to_end.serve_fixtures import healthz, server_serial, stopped_before_clients_that_never_read
from tests.serving import ANY_PORTS, Served, program, run_fleet


def tree_of(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_keys_are_nobody_elses_business(home: Path) -> None:
    keys = sorted(home.rglob("*.key"))
    assert [key.name for key in keys] == ["audit.key", "issuing.key", "operators.key", "root.key", "server.key"]
    for secret in [*keys, home / "registry.db"]:
        assert secret.stat().st_mode & 0o077 == 0, secret


def test_a_second_init_refuses_and_harms_nothing(home: Path) -> None:
    before = tree_of(home)
    done = program("fleet", "init", str(home), expect=1)
    assert "is a fleet home already; nothing was changed" in done.stderr
    assert tree_of(home) == before


def test_init_into_a_folder_of_somebody_elses_refuses(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = program("fleet", "init", str(tmp_path), expect=1)
    assert "is not empty; nothing was changed" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_init_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    done = program("fleet", "init", str(tmp_path / "home"), "--host", "not a host", expect=1)
    assert "is neither a DNS name nor an IP address" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_ready_file_tells_where_everything_is(served: Served) -> None:
    assert set(served.endpoints) == {"est", "mqtt", "http", "ca_file", "pid"}
    assert served.endpoints["pid"] == served.process.pid
    assert healthz(served) == (200, b'{"status":"ok"}\n')
    assert {server_serial(served, name) for name in ("est", "http")} == {server_serial(served)}


def test_sigterm_drains_and_ends_with_0(served: Served) -> None:
    host, port = served.address("mqtt")
    with socket.create_connection((host, port)):  # a handshake that never comes does not hold it up
        assert served.stop() == 0
    assert not served.ready_file.exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, port), 1)


def test_clients_that_never_read_do_not_hold_it_up(served: Served) -> None:
    assert stopped_before_clients_that_never_read(served) == 0


@pytest.mark.parametrize("kind", ["unrelated", "json", "link"])
def test_a_ready_file_replaces_nothing_of_the_users(home: Path, tmp_path: Path, kind: str) -> None:
    ready, target = tmp_path / "ready.json", tmp_path / "target"
    target.write_text("{}")
    if kind == "link":
        ready.symlink_to(target)
    else:
        ready.write_text("my notes" if kind == "unrelated" else '{"est": "", "mine": 1}')
    before = ready.lstat()
    (home / "server" / "server.key").unlink()
    done = program("fleet", "serve", "--home", str(home), *ANY_PORTS, "--ready-file", str(ready), expect=1)
    assert "(file-exists)" in done.stderr
    assert os.path.samestat(ready.lstat(), before)


def test_a_stale_ready_file_is_gone_before_anything_else(home: Path, tmp_path: Path) -> None:
    (ready := tmp_path / "ready.json").write_text("{}")
    (home / "server" / "server.key").unlink()
    program("fleet", "serve", "--home", str(home), *ANY_PORTS, "--ready-file", str(ready), expect=1)
    assert not ready.exists()


def test_connections_of_strangers_are_capped(home: Path, tmp_path: Path) -> None:
    settings = home / "fleet.toml"
    text = settings.read_text().replace(
        "http_connections_per_address_max = 200", "http_connections_per_address_max = 2"
    )
    assert text != settings.read_text()
    settings.write_text(text)
    served = Served(home, tmp_path / "ready.json").start()
    try:
        trust = ssl.create_default_context(cafile=served.ca_file)
        host, port = served.address("est")
        held = [trust.wrap_socket(socket.create_connection((host, port), 10), server_hostname=host) for _ in range(2)]
        # They ask for nothing: one of them gives way to a third, which is served.
        with trust.wrap_socket(socket.create_connection((host, port), 10), server_hostname=host) as third:
            third.sendall(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert third.recv(12) == b"HTTP/1.1 200"
            served.wait_for_line("code=gave-way-to-newcomer")
        for client in held:
            client.close()
    finally:
        served.stop()


@pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_mqtt_limits_reach_our_broker(home: Path, tmp_path: Path, workers: str) -> None:
    settings = home / "fleet.toml"
    text = settings.read_text().replace("queued_messages_per_device_max = 2000", "queued_messages_per_device_max = 77")
    settings.write_text(text.replace("\npacket_size_max = 16777216", "\npacket_size_max = 700000"))
    served = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", workers)).start()
    try:
        lines = (home / "run" / "mosquitto.conf").read_text().splitlines()
        assert {"max_queued_messages 77", "max_packet_size 700000", "max_queued_bytes 4194304"} < set(lines)
    finally:
        served.stop()


def test_a_second_server_for_one_home_is_refused(served: Served) -> None:
    done = program("fleet", "serve", "--home", str(served.home), *ANY_PORTS, expect=1)
    assert "is serving" in done.stderr
    assert "already" in done.stderr
    assert healthz(served)[0] == 200


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = program("fleet", "serve", "--home", str(home), *ANY_PORTS, "--mqtt", address, expect=1)
    assert f"he mqtt listener cannot bind {address}" in done.stderr


def test_a_broken_fleet_toml_names_the_key_and_the_line_and_starts_nothing(home: Path, tmp_path: Path) -> None:
    settings = home / "fleet.toml"
    text, count = re.subn(r"half_open_max = \d+", "half_open_max = -1", settings.read_text())
    assert count == 1
    settings.write_text(text)
    line = next(n for n, content in enumerate(text.splitlines(), 1) if content.startswith("half_open_max"))
    ready = tmp_path / "ready.json"
    done = program("fleet", "serve", "--home", str(home), *ANY_PORTS, "--ready-file", str(ready), expect=1)
    assert f"fleet.toml, line {line}: limits.half_open_max must be a whole number" in done.stderr
    assert not ready.exists()
    assert not (home / "run" / "broker.sock").exists()


def test_a_place_that_is_no_home_is_named(tmp_path: Path) -> None:
    done = program("fleet", "serve", "--home", str(tmp_path), *ANY_PORTS, expect=1)
    assert f"is not a fleet home. Make one with: fleet init {tmp_path}" in done.stderr


def test_sighup_shows_a_new_server_certificate_and_keeps_the_old_one_when_it_is_broken(
    served: Served, home: Path, tmp_path: Path
) -> None:
    before = server_serial(served)
    other = tmp_path / "other"
    run_fleet(other, "init", str(other))
    chain, key = served.home / "server" / "server.pem", served.home / "server" / "server.key"

    good_key = key.read_bytes()
    key.write_bytes((other / "server" / "server.key").read_bytes())  # not the key of this certificate
    served.process.send_signal(signal.SIGHUP)
    served.wait_for_line("event=reload outcome=failed kept=old")
    assert server_serial(served) == before

    key.write_bytes(good_key)
    script = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "from cryptography import x509; from cryptography.hazmat.primitives.serialization import Encoding\n"
        "from fleet.ca.authority import issue_server_certificate; from fleet.ca.keys import load_key, write_key\n"
        "home = Path(sys.argv[1]); pem = (home / 'ca/issuing.pem').read_bytes()\n"
        "new, key = issue_server_certificate(x509.load_pem_x509_certificate(pem), load_key(home / 'ca/issuing.key'),\n"
        "    ('localhost', '127.0.0.1'), datetime.now(UTC))\n"
        "(home / 'server/server.key').unlink(); write_key(home / 'server/server.key', key)\n"
        "(home / 'server/server.pem').write_bytes(new.public_bytes(Encoding.PEM) + pem)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(served.home)], check=True, cwd=Path(__file__).parents[2])
    served.process.send_signal(signal.SIGHUP)
    served.wait_for_line("event=reload outcome=ok")
    assert server_serial(served) != before
    assert chain.exists()


def test_the_log_holds_one_line_a_request_and_no_secret(served: Served) -> None:
    token = run_fleet(served.home, "token", "create", "--model", "default").strip()
    curl_like = ssl.create_default_context(cafile=served.ca_file)
    request = urllib.request.Request(
        f"{served.est}/.well-known/est/simpleenroll",
        data=b"AAAA",
        headers={"Content-Type": "application/pkcs10", "Authorization": f"Bearer {token}"},
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, context=curl_like, timeout=120)
    assert served.stop() == 0
    log = served.log
    assert log.count("event=est.simpleenroll") == 1
    assert token not in log
    assert token.split(".")[1] not in log + json.dumps(run_fleet(served.home, "audit", "list", "-o", "json"))
