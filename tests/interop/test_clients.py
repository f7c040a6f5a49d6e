"""MQTT clients in three languages at the gateway, each with a certificate that is renewed: one scenario for all.

Connect, SUBSCRIBE, PUBLISH by each QoS, a denied PUBLISH, another behind it, a message from the fleet; then again with
the renewed certificate, by the same session. `clients/` has the programs; one whose tool is not installed is skipped.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from fleet.config.addresses import Address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.home.layout import Home
from fleet.servers.gateway.broker.mosquitto import BACKEND
from fleet.servers.gateway.relay.reason_strings import TOPIC_REFUSED
from fleet.wire.mqtt.codes import V5, V311
from tests.interop.stock_device import StockDevice, needs
from tests.servers.paho_client import Paho
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

CLIENTS = Path(__file__).parent / "clients"
INSTALL_SECONDS_MAX = 120
T = TypeVar("T")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fleet")
    run_fleet(folder / "home", "init", str(folder / "home"))
    settings = Home(folder / "home").settings_file
    settings.write_text(render(replace(read_settings(settings), wss=Address("127.0.0.1", 0))))
    serving = Served(folder / "home", folder / "ready.json", words=(*ANY_PORTS, "--upstream", "mosquitto")).start()
    yield serving
    serving.stop()


def install(folder: Path, library: str, *words: str) -> None:
    """Fetch what `library` needs from its registry, as the lock file in `folder` says."""
    try:
        subprocess.run(words, cwd=folder, capture_output=True, timeout=INSTALL_SECONDS_MAX, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{library}: cannot be installed: {error}")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Those that have been built."""
    return {"paho-python": (sys.executable, str(CLIENTS / "client.py"))}


@pytest.fixture
def program(
    request: pytest.FixtureRequest, programs: dict[str, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    name: str = request.param
    if name in programs:
        return programs[name]
    folder = Path(shutil.copytree(CLIENTS, tmp_path_factory.mktemp(name) / "clients"))
    if name == "mqtt.js":
        needs("node", "npm")
        install(folder, name, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")
        programs[name] = ("node", str(folder / "client.js"))
    else:
        needs("go")
        install(folder, name, "go", "mod", "download")
        subprocess.run(("go", "build", "-o", "client", "."), cwd=folder, timeout=INSTALL_SECONDS_MAX, check=True)
        programs[name] = (str(folder / "client"),)
    return programs[name]


async def unless_it_fails(process: asyncio.subprocess.Process, step: Coroutine[Any, Any, T]) -> T:
    """What `step` gives; a client that has failed brings about nothing more."""
    going, ended = asyncio.ensure_future(step), asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait((going, ended), timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert going.done() or not process.returncode, f"the client has ended with {process.returncode}"
        return await going
    finally:
        going.cancel()
        ended.cancel()


async def test_a_client_that_fails_is_noticed() -> None:
    words = (sys.executable, "-c", "import sys; sys.exit(3)")
    process = await asyncio.create_subprocess_exec(*words)
    with pytest.raises(AssertionError, match="ended with 3"):
        await unless_it_fails(process, asyncio.sleep(PATIENCE_SECONDS))


@pytest.mark.parametrize(
    ("program", "version", "listener"),
    [
        *((program, version, "mqtt") for program in ("paho-python", "mqtt.js", "paho-go") for version in (V311, V5)),
        ("paho-python", V5, "wss"),
        pytest.param("mqtt.js", V5, "wss", marks=pytest.mark.long),
    ],
    indirect=["program"],
)
async def test_a_client_through_a_denial_and_a_renewal(
    served: Served,
    program: tuple[str, ...],
    version: int,
    listener: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    needs("mosquitto")
    name = re.sub(r"[^a-z0-9]+", "-", request.node.callspec.id)
    device = await asyncio.to_thread(StockDevice, served, name, tmp_path)
    backend = Paho("backend", V311, transport="unix")
    backend.client.username_pw_set(BACKEND)
    assert await backend.connect_unix(served.home / "run" / "broker.sock") == 0
    await backend.subscribe("devices/+/up/#")  # by QoS 1: in the order of their arrival
    files = (str(served.ca_file), str(device.certificate), str(device.key))
    words = (str(version), *map(str, served.address(listener)), name, *files, listener)
    with (tmp_path / "errors").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *program, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
    assert process.stdin is not None
    assert process.stdout is not None

    async def said(stream: asyncio.StreamReader) -> Any:
        return json.loads(await asyncio.wait_for(stream.readline(), PATIENCE_SECONDS))

    try:
        for payload in (b"0", b"1", b"2", b"after"):
            assert await unless_it_fails(process, backend.message()) == (f"devices/{name}/up/t", payload)
        await backend.publish(f"devices/{name}/down/t", b"go")
        denied = {"code": 0x87, "reason": TOPIC_REFUSED} if version == V5 else {"code": 0, "reason": ""}
        assert await said(process.stdout) == {"granted": [1], "denied": denied, "got": "go"}
        await asyncio.to_thread(device.renew)
        process.stdin.write(b"renewed\n")
        assert await unless_it_fails(process, backend.message()) == (f"devices/{name}/up/t", b"again")
        assert await said(process.stdout) == {"present": True}
        assert await asyncio.wait_for(process.wait(), PATIENCE_SECONDS) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await backend.close()
    sessions = re.findall(rf"event=mqtt\.connect device={name} serial=(\w+) .*code=ok", served.log)
    assert len(sessions) == len(set(sessions)) == 2
    assert len(re.findall(rf"event=mqtt\.publish device={name} .*topic=devices/another/up/t", served.log)) == 1
