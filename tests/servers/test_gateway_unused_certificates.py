"""A device with more unused certificates than a first use looks at is answered with each of them."""

import asyncio
from pathlib import Path

import pytest

from fleet.domain.changes import Change
from fleet.domain.credential import CredentialState
from fleet.domain.writes import AddCredential
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.gateway_fixtures import PATIENCE, credential, open_gateway, operator, populate


@pytest.mark.parametrize("order", [1, -1], ids=["oldest first", "newest first"])
async def test_each_is_admitted_or_refused_at_once(order: int, tmp_path: Path) -> None:
    async with open_gateway(tmp_path) as built:
        await populate(built.registry, "cam-1")
        unused = [credential("cam-1", CredentialState.ISSUED) for _ in range(17)]
        await built.registry.commit(Change(operator("populate"), tuple(AddCredential(each) for each in unused)))
        for held in unused[::order]:
            wire = await built.dial(held)
            wire.send(encode_connect(Connect(V5, "cam-1")))
            answers = {
                asyncio.create_task(wire.packet()),
                asyncio.create_task(asyncio.wait_for(built.broker.sessions.get(), PATIENCE)),
            }
            done, waiting = await asyncio.wait(answers, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            assert done
            for task in waiting:
                task.cancel()
        assert "mqtt.connect.internal" not in built.gateway.stats
        assert "mqtt.connect.open-timeout" not in built.gateway.stats
