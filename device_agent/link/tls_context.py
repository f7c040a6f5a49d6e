"""The TLS context of one connection: the device's key and certificate, its trust anchors, and the pins."""

import ssl
from datetime import datetime

from device_agent.config.agent_config import AgentConfig
from device_agent.errors import KeyStoreLost
from device_agent.store.identity_store import Identity
from device_agent.store.key_store import FILE
from fleet.est_client.errors import BadCredentials
from fleet.est_client.server_checks import also_check
from fleet.est_client.tls import client_context


def tls_context(config: AgentConfig, identity: Identity, check_time: bool, at: datetime | None) -> ssl.SSLContext:
    """A context that presents `identity`. `at`: judges dates if `check_time` does not.

    Raises: ClientError; KeyStoreLost for a key in hardware.
    """
    try:
        context = client_context(config.ca_file, identity.files, check_time=check_time)
    except BadCredentials as error:
        if config.key_store.kind == FILE:
            raise
        raise KeyStoreLost(config.key_store.kind) from error
    if config.pins or at is not None:
        also_check(context, pins=config.pins, at=at)
    return context
