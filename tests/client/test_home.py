"""The API in process, at a home itself."""

import getpass
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.client.client import Answer
from fleet.client.home import HomeTransport
from fleet.domain.errors import NotFound
from fleet.home.layout import Home

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def transport(home: Path) -> Iterator[HomeTransport]:
    opened = HomeTransport(home)
    yield opened
    opened.close()


def post(transport: HomeTransport, path: str, body: Any) -> Answer:
    return transport.send("POST", path, JSON, json.dumps(body).encode())


def test_a_change_is_audited_under_the_name_of_the_unix_user(transport: HomeTransport) -> None:
    made = post(transport, "/v1/devices", {"id": "cam-7", "model": "default"})
    assert (made.status, made.headers["etag"], json.loads(made.body)["id"]) == (201, '"1"', "cam-7")
    rows = json.loads(transport.send("GET", "/v1/audit", {}, None).body)["items"]
    assert (rows[-1]["action"], rows[-1]["actor"]) == ("device.add", f"user {getpass.getuser()}")
    assert rows[-1]["address"] == ""


def test_the_user_of_a_home_has_every_permission_and_no_certificate(transport: HomeTransport) -> None:
    assert transport.send("GET", "/v1/operators", {}, None).status == 200
    assert transport.send("GET", "/v1/status", {}, None).status == 200
    answer = transport.send("GET", "/v1/whoami", {}, None)
    assert (answer.status, json.loads(answer.body)["code"]) == (401, "no-certificate")


def test_refusals_are_problems_as_over_https(transport: HomeTransport) -> None:
    for method, path, body, status, code in (
        ("GET", "/v1/nothing", None, 404, "no-such-path"),
        ("DELETE", "/v1/devices/cam-7", None, 405, "bad-method"),
        ("GET", "/v1/devices?color=red", None, 400, "bad-request"),
        ("POST", "/v1/devices", b"{", 400, "bad-json"),
        ("POST", "/v1/devices", b"x" * 200_000, 413, "too-large"),
        ("GET", "/v1/devices/cam-7", None, 404, "no-such-device"),
    ):
        answer = transport.send(method, path, JSON, body)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert (answer.status, json.loads(answer.body)["code"]) == (status, code)


def test_an_idempotency_key_counts_here_too(transport: HomeTransport) -> None:
    body = json.dumps({"id": "cam-7", "model": "default"}).encode()
    answers = [transport.send("POST", "/v1/devices", {**JSON, "Idempotency-Key": "k"}, body) for _ in range(2)]
    assert [each.status for each in answers] == [201, 201]
    assert answers[0].body == answers[1].body


def test_what_was_revoked_is_in_the_revocation_log_once_it_is_closed(home: Path) -> None:
    transport = HomeTransport(home)
    post(transport, "/v1/devices", {"id": "cam-7", "model": "default"})
    assert transport.send("POST", "/v1/devices/cam-7/revoke", {}, None).status == 200
    transport.close()
    assert "cam-7" in Home(home).revocations.read_text()


def test_a_folder_that_is_no_home_is_named(tmp_path: Path) -> None:
    transport = HomeTransport(tmp_path)
    with pytest.raises(NotFound) as refused:
        transport.send("GET", "/v1/devices", {}, None)
    assert refused.value.code == "no-home"
    transport.close()


def test_no_http_library_is_loaded(home: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fleet.client.home import HomeTransport
transport = HomeTransport(Path({str(home)!r}))
assert transport.send("GET", "/v1/devices", {{}}, None).status == 200
transport.close()
print(*(name for name in ("aiohttp", "multidict", "yarl", "OpenSSL", "asyncpg") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
