"""Every command that a page shows is run, in order, as the page shows it.

A page's ```sh blocks make one script, run by `sh -e` in an empty folder with a space in its name. A page that needs
something to stand on says so in an HTML comment before its first block: `<!-- needs: NAME -->`, with NAME in STAGES.
Ports are replaced by free ones, so that nothing else on the machine is met.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.free_ports import free_ports
from tests.postgres_server import PASSWORD, PostgresServer

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in PROJECT.rglob("*.md")
    if not any(part.startswith(".") for part in page.relative_to(PROJECT).parts) and "```sh\n" in page.read_text()
)
PORTS = ("8443", "8883", "8444")
PAGE_SECONDS_MAX = 600
DATABASE = "postgresql://fleet@db.example/fleet"  # on a page; a new one of a server of ours takes its place

SERVED = """fleet init home >/dev/null
export FLEET_HOME="$PWD/home"
fleet serve --ready-file ready.json 2>serve.log &
until [ -f ready.json ]; do sleep 0.1; done
"""

STAGES = {
    "": "",
    "home": 'fleet init home >/dev/null\nexport FLEET_HOME="$PWD/home"\n',
    "served": SERVED,
    "device": SERVED
    + """fleet device add cam-9 --model default >/dev/null
fleet token create --device cam-9 --out cam-9.token 2>/dev/null
device-agent --home cam-9 init --device-id cam-9 --est https://localhost:8443 --mqtt localhost:8883 \\
    --ca home/ca/root.pem
device-agent --home cam-9 enroll --token-file cam-9.token
""",
}


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def script_of(page: Path) -> str:
    needs = re.search(r"<!-- needs: (\w+) -->", page.read_text())
    blocks = [block for block in blocks_of(page) if ".quickstart" not in block]
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    serve = " ".join(
        f"--{name} 127.0.0.1:{ports[port]}" for name, port in zip(("est", "mqtt", "http"), PORTS, strict=True)
    )
    body = STAGES[needs[1] if needs else ""] + "".join(blocks)
    for port, free in ports.items():
        body = body.replace(port, free)
    return body.replace("fleet serve ", f"fleet serve {serve} ")


def needed_programs(script: str) -> list[str]:
    named = ("mosquitto_sub", "mosquitto_pub", "openssl", "curl", "pki", "jq", "keytool", "sqlite3")
    return [name for name in named if re.search(rf"\b{name}\b", script) and not shutil.which(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_command_shown_does_what_the_page_says(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = script_of(page)
    on_postgres = DATABASE in script
    if on_postgres:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        script = script.replace(DATABASE, server.tcp_url(server.make_database()))
    if missing := needed_programs(script):
        pytest.skip(f"{', '.join(missing)}: not installed")
    folder = tmp_path / "a folder"
    folder.mkdir()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": programs, "HOME": str(folder), "LANG": "C.UTF-8"}
    if on_postgres:
        environment["PGPASSWORD"] = PASSWORD  # where a person has it in ~/.pgpass
    assert run_script(script, folder, environment) == 0, (tmp_path / "output").read_text()


def run_script(script: str, folder: Path, environment: dict[str, str]) -> int:
    """Its exit code; what it left running in the background is ended."""
    with (folder.parent / "output").open("wb") as output:
        shell = subprocess.Popen(
            ["sh", "-ex", "-c", script],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            return shell.wait(PAGE_SECONDS_MAX)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, number)
                    wait_for_group(shell.pid)


def wait_for_group(group: int) -> None:
    """Return when no process of the group is left, or when it has had time enough."""
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-group, os.WNOHANG)
        select.select([], [], [], 0.02)


def test_the_quick_start_runs_the_demo(tmp_path: Path) -> None:
    if Path(sys.prefix) != PROJECT / ".venv" or not (PROJECT / ".venv" / ".installed").exists():
        pytest.skip(".quickstart: these tests run outside the environment that it makes")
    done = subprocess.run(
        ["sh", str(PROJECT / ".quickstart"), "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 10


@pytest.mark.parametrize("word", [(), ("nonsense",)])
def test_the_quick_start_says_how_it_is_used_from_another_folder(tmp_path: Path, word: tuple[str, ...]) -> None:
    script = os.path.relpath(PROJECT / ".quickstart", tmp_path)
    done = subprocess.run(["sh", script, *word], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "sh .quickstart demo" in done.stdout


def test_readme_and_ci_name_the_same_commands() -> None:
    quick = [block.strip() for block in blocks_of(PROJECT / "README.md") if ".quickstart" in block]
    assert quick == ["sh .quickstart demo", "sh .quickstart test"]
    assert (PROJECT / ".ci" / "run").read_text().rstrip().endswith("exec sh .quickstart test")
