"""A webhook before a first certificate, from the device's CSR to a real HTTPS server and back."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.model_rules import AdmissionRules
from fleet.services import inventory
from fleet.webhook.caller import CallLimits, Webhooks, client_context
from fleet.webhook.signing import Signer
from tests.servers.est_fixtures import EstHarness, basic, csr_for, open_est, renewal_csr
from tests.webhook.hooks import Answer, Hook, http, serving
from tests.webhook.test_webhooks import silent


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Hook]:
    async with serving(tmp_path) as hook:
        yield hook


@pytest.fixture
async def est(tmp_path: Path, hook: Hook) -> AsyncIterator[EstHarness]:
    """Devices of model cam take the hook's yes."""
    limits = CallLimits(seconds_max=0.5, local_allowed=True)
    webhooks = Webhooks(Signer(generate_key()), client_context(hook.ca_file), limits=limits)
    async with open_est(tmp_path, authorizer=webhooks) as est:
        cam = await est.registry.model("cam")
        assert cam is not None
        hooked = replace(cam, rules=replace(cam.rules, admission=AdmissionRules(webhook=hook.url)))
        await inventory.set_model(est.registry, hooked, act=Act("test", est.clock()))
        await est.device("cam-1")
        yield est
    await webhooks.close()


async def test_allowed_with_attributes(est: EstHarness, hook: Hook) -> None:
    hook.answer = http({"allow": True, "attributes": {"site": "Oslo East"}})
    key = generate_key()
    answer = await est.enroll(csr_for("cam-1", key), basic(await est.token("cam-1")))
    assert answer.status == 200
    device = await est.registry.device("cam-1")
    assert device is not None
    assert (device.id, device.tags) == ("cam-1", (("site", "Oslo East"),))
    (asked,) = hook.asked
    assert json.loads(asked.body)["device"] == "cam-1"
    assert json.loads(asked.body)["address"] == "127.0.0.1"
    identity = est.identity(answer.certificates[0], key)
    assert (await est.reenroll(renewal_csr(identity), identity)).status == 200
    assert len(hook.asked) == 1


async def test_denied_and_asked_anew_the_next_time(est: EstHarness, hook: Hook) -> None:
    hook.answer = http({"allow": False, "reason": "not on the list"})
    csr, token = csr_for("cam-1"), await est.token("cam-1")
    answer = await est.enroll(csr, basic(token))
    assert (answer.status, answer.code) == (403, "webhook-denied")
    assert "list" not in answer.text
    hook.answer = http({"allow": True})
    assert (await est.enroll(csr, basic(token))).status == 200  # the token was not spent
    first, second = (json.loads(asked.body)["id"] for asked in hook.asked)
    assert first != second


@pytest.mark.parametrize("answer", [http({"allow": "yes"}), http(b"<html>"), silent])
async def test_no_answer_that_counts(est: EstHarness, hook: Hook, answer: Answer) -> None:
    hook.answer = answer
    got = await est.enroll(csr_for("cam-1"), basic(await est.token("cam-1")))
    assert (got.status, got.code) == (503, "webhook-failed")
    assert int(got.header("Retry-After") or "") > 0
    assert str(hook.port) not in got.text
    assert await est.registry.credentials("cam-1") == []
    assert len(hook.asked) == 1


async def test_a_slow_one_holds_nobody_else(est: EstHarness, hook: Hook) -> None:
    """While cam's hook is silent, pump's devices, which have none, are served."""
    hook.answer = silent
    token = basic(await est.token("cam-1"))
    held = [asyncio.create_task(est.enroll(csr_for("cam-1"), token)) for _ in range(8)]
    await hook.has_been_asked(1)
    await est.device("pump-1", "pump")
    answer = await est.enroll(csr_for("pump-1"), basic(await est.token("pump-1")))
    assert answer.code == "key-not-allowed"  # P-256 at a model of P-384: judged, and at once
    assert not any(each.done() for each in held)
    assert {(await each).status for each in held} == {503}
