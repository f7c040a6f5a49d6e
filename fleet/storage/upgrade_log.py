"""Log line of a registry's schema that was upgraded."""

import logging

from fleet.config.logs import log_event

logger = logging.getLogger("fleet.registry")


def log_upgrade(where: str, before: int, after: int) -> None:
    """A warning, which commands print too: there is no way back. Nothing for a new registry, or a current one."""
    if 0 < before < after:
        log_event(logger, logging.WARNING, "registry.upgraded", where=where, schema_before=before, schema=after)
