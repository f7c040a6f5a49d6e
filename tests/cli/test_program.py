"""`fleet` as a process: what it loads, what it does with streams that fail, and secrets that could not be delivered."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fleet.cli import main

REMOTE = ("--url", "https://localhost:1", "--cert", "CERT")
UNIX_ONLY = ("fcntl", "pwd", "grp", "resource", "termios")


def shell(home: Path, words: str) -> "subprocess.CompletedProcess[str]":
    """`fleet WORDS` in bash, at the home."""
    environment = {**os.environ, "FLEET_HOME": str(home)}
    command = ["bash", "-c", f"{shlex.quote(sys.executable)} -m fleet {words}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def tokens(home: Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(main, ["token", "list", "-o", "json", "--home", str(home)])
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("model list >/dev/full", 1, "no space left on device"),
        ("model list -o json >&-", 1, "it is closed"),
        ("model list | sleep 0; exit ${PIPESTATUS[1]}", 0, ""),
        ("device suspend --filter model=default <&-", 0, "No device matches"),
        ("model show $'\\xff'", 2, "is not a name for a model"),
        ("device add cam-1 --model default --serial $'\\xff'", 2, "is not valid UTF-8"),
        ("device add cam-1 --model default --tag $'lot=\\xff'", 2, "is not a tag's value"),
        ("model list --home $'/nowhere\\xff'", 1, "is not a fleet home"),
        ("cert inspect $'/nowhere\\xff'", 1, "no such file or directory"),
        ("audit export >/dev/full", 1, "no space left on device"),
    ],
)
def test_streams_and_arguments(home: Path, words: str, code: int, says: str) -> None:
    done = shell(home, words)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in " ".join(done.stderr.split())


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("stream", [">/dev/full", ">&-"])
def test_a_token_that_could_not_be_printed_is_revoked(home: Path, form: str, stream: str) -> None:
    done = shell(home, f"token create --model default -o {form} {stream}")
    assert done.returncode == 1
    assert "standard output" in done.stderr
    assert [token["state"] for token in tokens(home)] == ["revoked"]


def test_a_token_that_could_not_be_written_is_revoked(home: Path, tmp_path: Path) -> None:
    done = shell(home, f"token create --model default --out {tmp_path}/nowhere/token")
    assert done.returncode == 1
    assert [token["state"] for token in tokens(home)] == ["revoked"]


GONE = tuple(
    (words, 1)
    for words in (
        "cert inspect a.pem",
        "serve --home x",
        "restore a b",
        "cert convert a b.der",
        "audit verify --file a",
    )
)


def test_a_working_directory_that_is_gone(home: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    program = f"{shlex.quote(sys.executable)} -c 'from fleet.cli import main; main()'"
    for words, code in ((f"model list --home {home}", 0), ("model list --home relative", 1), ("init here", 1), *GONE):
        command = f"mkdir -p {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {program} {words}"
        environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert done.stderr == ("Error: the working directory has been deleted.\n" if code else "")


def test_a_listing_at_a_home_loads_what_it_needs(home: Path) -> None:
    code = (
        "import sys\nfrom fleet.cli import main\n"
        f"main.main(['device', 'list', '--home', {str(home)!r}], standalone_mode=False)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ID")
    heavy = {"aiohttp", "amqtt", "OpenSSL", "asyncpg", "uvloop", "cryptography"}
    for_errors_and_secrets = {"difflib", "email", "http", "secrets", "tempfile", "zipfile"}
    assert not (heavy | for_errors_and_secrets) & set(done.stdout.split())


BLOCKED = f"""
import sys
for name in {UNIX_ONLY!r}:
    sys.modules[name] = None
from fleet.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("cert", "--help"), 0, ""),
        (("device", "list", *REMOTE), 1, "cannot be reached"),
        (
            ("device", "import", "CERT", *REMOTE),
            1,
            "does not name the columns",
        ),
        (("audit", "verify", *REMOTE), 1, "cannot be reached"),
        (
            ("station", "add", "s", "--model", "m", "--out", "OUT", *REMOTE),
            1,
            "be rea",
        ),
        (
            ("token", "create", "--devices", "CERT", *REMOTE),
            1,
            "not a device id",
        ),
        (("device", "list", "--home", "OUT"), 1, "A home needs Linux or another Unix"),
        (("serve", "--home", "OUT"), 1, "A home needs Linux or another Unix"),
    ],
)
def test_an_operators_laptop_may_be_no_unix(
    home: Path, tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    """Windows has none of these modules."""
    pem = tmp_path / "both.pem"
    pem.write_bytes((home / "server" / "server.pem").read_bytes() + (home / "server" / "server.key").read_bytes())
    named = [{"CERT": str(pem), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *named], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr


def test_library_warnings_are_not_shown(tmp_path: Path) -> None:
    """A certificate with serial number 0 makes the library warn."""
    code = "import warnings\nfrom fleet.config.streams import prepare\nprepare()\nwarnings.warn('a library is unhappy')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
