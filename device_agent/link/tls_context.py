"""The TLS context of one connection: the device's key and certificate, its trust anchors, and the pins."""

import ssl
import subprocess
from datetime import datetime

from device_agent.child_process import module_command
from device_agent.config.agent_config import AgentConfig
from device_agent.errors import KeyStoreFailed, KeyStoreLost
from device_agent.store.identity_store import Identity
from device_agent.store.key_store import FILE
from fleet.est_client.errors import BadCredentials
from fleet.est_client.server_checks import also_check
from fleet.est_client.tls import client_context

KEY_SECONDS_MAX = 60.0  # until a TPM has loaded the key, or a child process has heard why it does not


def tls_context(config: AgentConfig, identity: Identity, check_time: bool, at: datetime | None) -> ssl.SSLContext:
    """A context that presents `identity`. `at`: judges dates if `check_time` does not. Blocks while a TPM is slow.

    Raises: ClientError, of which KeyStoreFailed for a key of another TPM or token; KeyStoreLost for one in hardware
    that cannot be reached.
    """
    try:
        context = client_context(config.ca_file, identity.files, check_time=check_time)
    except BadCredentials as error:
        if config.key_store.kind == FILE:
            raise
        if why := _why_never(config, identity):
            raise KeyStoreFailed(why) from error
        raise KeyStoreLost(config.key_store.kind) from error
    if config.pins or at is not None:
        also_check(context, pins=config.pins, at=at)
    return context


def _why_never(config: AgentConfig, identity: Identity) -> str:
    """Why the key store will never use the key, as a child process hears it; "" if it may."""
    words = [*module_command("device_agent.key_check"), str(config.home), str(identity.key_file)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=KEY_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
