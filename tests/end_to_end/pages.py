"""Every command that a page shows is run, in order, as the page shows it.

A page's ```sh blocks make one script, run by `sh -e` in an empty folder with a space in its name. A page that needs
something to stand on says so in an HTML comment before its first block: `<!-- needs: NAME -->`, with NAME in STAGES.
Ports are replaced by free ones, so that nothing else on the machine is met; a second of the bench by a fifth of one.
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

from tests.forks import write_script
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

# Forked, each command costs a tenth of its start.
PROGRAMS = {
    "fleet": "fleet.cli:main",
    "device-agent": "device_agent.cli:main",
    "fleet-station": "firmware_tools.station_cli:main",
    "firmware-tools": "firmware_tools.cli:main",
    "hw-bench": "hw_bench.cli:main",
}

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
    return body.replace("fleet serve ", f"fleet serve {serve} ").replace("--seconds 1 ", "--seconds 0.2 ")


def needed_programs(script: str) -> list[str]:
    named = ("mosquitto_sub", "mosquitto_pub", "openssl", "curl", "pki", "jq", "keytool", "sqlite3", "gcc")
    missing = [name for name in named if re.search(rf"\b{name}\b", script) and not shutil.which(name)]
    if "-lmbedtls" in script and not Path("/usr/include/mbedtls/ssl.h").exists():
        missing.append("libmbedtls-dev")
    return missing


def run_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    script = script_of(page)
    on_postgres = DATABASE in script
    if on_postgres:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        script = script.replace(DATABASE, server.tcp_url(server.make_database()))
    if missing := needed_programs(script):
        pytest.skip(f"{', '.join(missing)}: not installed")
    folder = tmp_path / "a folder"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    for name, entry in PROGRAMS.items():
        write_script(tmp_path / "bin" / name, entry, programs_too=name == "hw-bench")
    programs = os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {"PATH": programs, "HOME": str(folder), "LANG": "C.UTF-8", "PYTHONPATH": str(PROJECT)}
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
