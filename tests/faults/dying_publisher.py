"""A node that publishes the CRLs of a home and kills itself within the round: HOME STEP before|after ISO-TIME."""

import asyncio
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.home.crl_authorities import crl_authorities
from fleet.home.layout import Home, open_registry
from fleet.runtime.jobs.crls import noting
from fleet.services.crl_publishing import CrlPolicy, CrlPublisher

NODE = "node-1"
POLICY = CrlPolicy("http://pki.example", shards=4)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def publish(home: Home, step: str, when: str, now: datetime) -> None:
    registry = await open_registry(home)
    whole = getattr(registry, step)

    async def dying(*given: Any, **more: Any) -> Any:
        if when == "before":
            _die()
        await whole(*given, **more)
        _die()

    setattr(registry, step, dying)
    await CrlPublisher(registry, POLICY, NODE, noting(home)).publish_due(crl_authorities(home), now)


if __name__ == "__main__":
    asyncio.run(publish(Home(Path(sys.argv[1])), sys.argv[2], sys.argv[3], datetime.fromisoformat(sys.argv[4])))
