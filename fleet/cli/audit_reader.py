"""What reads the audit: the registry itself at a home, the API over HTTPS."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fleet.client.audit import ApiAudit
from fleet.client.client import Client
from fleet.domain.ports import AuditReader


@asynccontextmanager
async def audit_reader(client: Client) -> AsyncIterator[AuditReader]:
    """The audit, with its signed heads and the hashes that are kept. Raises: FleetError."""
    if client.home is None:
        yield ApiAudit(client)
        return
    from fleet.cli.home import opened

    async with opened(client.home) as fleet:  # millions of rows, without JSON between
        yield fleet.registry
