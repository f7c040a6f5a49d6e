"""A node that publishes the CRLs of a home's issuing CA and kills itself within the round.

Its arguments: HOME STEP before|after ISO-TIME. The CRLs of other CAs, which take the same steps, are left out.
"""

import asyncio
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.home.crl_issuing import noting
from fleet.home.home_cas import crl_authorities
from fleet.home.layout import Home, open_registry
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
    issuing = [ca for ca in crl_authorities(home) if ca.is_sharded]
    await CrlPublisher(registry, POLICY, NODE, noting(home)).publish_due(issuing, now)


if __name__ == "__main__":
    asyncio.run(publish(Home(Path(sys.argv[1])), sys.argv[2], sys.argv[3], datetime.fromisoformat(sys.argv[4])))
