"""The admin API's own description, held against a served home by requests that are made up from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.servers.admin.sections import all_routes
from hw_bench.peers.home import disable_rate_limits
from tests.serving import Served, asked_to_wait, run_fleet
from tests.tiers import Tier

SECONDS_MAX = 900  # far more than it takes: it stops by the number of examples

# What a description can't tell is refused all the same: a cursor that no page gave, a topic filter with a wildcard
# where none may be, an ETag of yesterday, a key that was used. A value that is far too
# long makes the whole body or the request line too large. And RFC 6585 has a status for a missing If-Match.
CONFIGURATION = """
[parameters]
"path.serial" = "{serial}"
"path.token" = "{token}"
"path.request" = "{request}"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 412, 422]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 414, 415, 422, 428, 429, 431, "5xx"]

[checks.missing_required_header]
expected-statuses = [400, 428]
"""


@pytest.fixture
def operator(home: Path, tmp_path: Path) -> Path:
    """The folder with the files of the admin bob, who may ask as often as he likes."""
    disable_rate_limits(home / "fleet.toml")
    (tmp_path / "password").write_text("secret\n")
    words = ("operator", "add", "bob", "--role", "admin", "--password-file", str(tmp_path / "password"))
    run_fleet(home, *words, "--out", str(tmp_path / "operator"))
    return tmp_path / "operator"


def test_requests_made_up_from_the_description(
    home: Path, operator: Path, served: Served, tmp_path: Path, tier: Tier
) -> None:
    run_fleet(home, "device", "add", "cam-7", "--model", "default")
    token = json.loads(run_fleet(home, "token", "create", "--device", "cam-7", "-o", "json"))["id"]
    serial = json.loads(run_fleet(home, "operator", "show", "bob", "-o", "json"))["serial"]
    configuration = tmp_path / "schemathesis.toml"
    request = asked_to_wait(served, home, "new-1")
    configuration.write_text(CONFIGURATION.format(serial=serial, token=token, request=request))
    program = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(configuration), "run"]
    identity = ["--request-cert", str(operator / "bob.pem"), "--request-cert-key", str(operator / "bob.key")]
    examples = tier.times(3, all=10)  # for each operation and each of several phases
    options = ["--tls-verify", str(served.ca_file), "--max-examples", str(examples), "--seed", "1", "--no-color"]
    # A stream has no end to wait for; it has tests of its own.
    address = [f"{served.endpoints['http']}/v1/openapi.json", "--exclude-path", "/v1/events"]
    done = subprocess.run(
        [*program, *address, *identity, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(all_routes()) - 2}" in done.stdout  # all but the stream and the description itself
    assert "Traceback" not in served.log
    assert served.process.poll() is None
