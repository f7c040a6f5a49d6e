"""`fleet serve` asks a model's webhook: its CA from fleet.toml, its key from the home, in each of two workers."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ANY_PORTS, Served, program, run_agent, run_fleet
from tests.waiting import PATIENCE_SECONDS
from tests.webhook.hooks import Hook, http, serving


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    """In a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    stack = contextlib.AsyncExitStack()

    async def start() -> Hook:
        return await stack.enter_async_context(serving(tmp_path))

    yield asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_SECONDS)
    asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(PATIENCE_SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE_SECONDS)
    loop.close()


def set_ca(home: Path, text: str) -> None:
    settings = home / "fleet.toml"
    given = settings.read_text().replace('webhook_ca = "system"', f'webhook_ca = "{text}"')
    settings.write_text(given.replace("webhook_local = false", "webhook_local = true"))


def test_asked_by_a_served_home(home: Path, hook: Hook, tmp_path: Path) -> None:
    (home / "hooks.pem").write_bytes(hook.ca_file.read_bytes())
    set_ca(home, "hooks.pem")
    run_fleet(home, "model", "set", "default", "--webhook", hook.url)
    served = Served(home, tmp_path / "ready.json", (*ANY_PORTS, "--workers", "2")).start()
    try:
        device = tmp_path / "cam-7"
        words = ("init", "--device-id", "cam-7", "--est", served.est, "--mqtt", "localhost:1", "--ca")
        run_agent(device, *words, str(served.ca_file))
        run_fleet(home, "device", "add", "cam-7", "--model", "default")
        token = run_fleet(home, "token", "create", "--device", "cam-7")
        hook.answer = http({"allow": False, "reason": "not on the list"})
        told = program("device_agent", "--home", str(device), "enroll", expect=1, give=token)
        assert "webhook-denied" in told.stderr
        hook.answer = http({"allow": True, "attributes": {"site": "Oslo East"}})
        run_agent(device, "enroll", give=token)
    finally:
        served.stop()
    assert [json.loads(asked.body)["device"] for asked in hook.asked] == ["cam-7", "cam-7"]
    keyid = json.loads(run_fleet(home, "webhook", "key", "-o", "json"))["keyid"]
    assert all(f'keyid="{keyid}"' in asked.headers["signature-input"] for asked in hook.asked)
    assert json.loads(run_fleet(home, "device", "show", "cam-7", "-o", "json"))["tags"] == {"site": "Oslo East"}
    rows = json.loads(run_fleet(home, "audit", "list", "-o", "json"))
    denied = [row for row in rows if row["outcome"] == "webhook-denied"]
    assert [row["detail"]["webhook_reason"] for row in denied] == ["not on the list"]


@pytest.mark.parametrize(("name", "content"), [("missing.pem", None), ("hooks.pem", "no PEM")])
def test_a_ca_that_cannot_be_read_keeps_it_from_starting(home: Path, name: str, content: str | None) -> None:
    if content is not None:
        (home / name).write_text(content)
    set_ca(home, name)
    argv = [sys.executable, "-m", "fleet", "serve", "--home", str(home), *ANY_PORTS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 1
    assert name in done.stderr
    assert "(bad-webhook-ca)" in done.stderr
    assert "Traceback" not in done.stderr
