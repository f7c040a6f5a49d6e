"""`python -m device_agent.hooks.deploying`: the short-lived process that deploys the current certificate.

It reads its job, one line of JSON, from standard input, which then stays open: when it is closed, the agent has gone,
and the hook that runs is killed. Its results are the marks in the home. Needs `cryptography`.
"""

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.config.hooks import Hook
from device_agent.errors import Busy, NotEnrolled
from device_agent.hooks.confined import Confined, run_confined
from device_agent.hooks.copies import content_of, place
from device_agent.hooks.deployment_marks import Mark, begun, ended, is_due, read_marks, write_marks
from device_agent.store.atomic_files import held_lock
from device_agent.store.identity_store import Identity, IdentityStore
from device_agent.store.locks import HOOKS_LOCK
from fleet.est_client.errors import ClientError
from fleet.wire.errors import WireError

JOB_SIZE_MAX = 16 * 1024  # bytes
Report = Callable[[str, Mark], None]
"""Called with the hook's name and its mark, once it has ended."""


def deploy(
    config: AgentConfig,
    names: Collection[str],
    *,
    again: bool = False,
    report: Report = lambda *_: None,
    stop: int | None = None,
) -> dict[str, Mark]:
    """Run the hooks of these names that are due for the current certificate, in their order; with `again`, all of them.

    The marks of those that ran. Ends before the next hook once the descriptor `stop` is readable.

    Raises: NotEnrolled; Busy while another process deploys; OSError if the marks cannot be written.
    """
    ran: dict[str, Mark] = {}
    with held_lock(config.home / HOOKS_LOCK, "Another process runs this device's hooks.", "Wait for it to finish."):
        for hook in config.hooks:
            # The certificate may have been renewed while the hook before was running: each deploys the newest.
            identity = IdentityStore(config.home).current()
            if identity is None:
                raise NotEnrolled("This device has no certificate in use yet.")
            fingerprint, marks = identity.certificate.fingerprint, read_marks(config.home)
            if hook.name not in names or not (again or is_due(hook, marks, fingerprint)):
                continue
            if stop is not None and select.select([stop], [], [], 0)[0]:
                break
            kept = {each.name: marks[each.name] for each in config.hooks if each.name in marks}
            mark = begun(hook, marks, fingerprint, datetime.now(UTC))
            write_marks(config.home, kept | {hook.name: mark})
            ran[hook.name] = ended(mark, run_hook(config, hook, identity, stop))
            write_marks(config.home, kept | {hook.name: ran[hook.name]})
            report(hook.name, ran[hook.name])
    return ran


def run_hook(config: AgentConfig, hook: Hook, identity: Identity, stop: int | None) -> str:
    """Copy, then run. What went wrong; "" if nothing did."""
    for copy in hook.copies:
        try:
            place(copy, content_of(copy, identity, config))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return f"{copy.to} was not written: {where}{error.strerror or error}"
        except (ClientError, WireError, ValueError) as error:
            return f"{copy.to} was not written: {error}"
    if not hook.run:
        return ""
    environment = {
        "DEVICE_ID": config.device_id,
        "DEVICE_HOOK": hook.name,
        "DEVICE_SERIAL": identity.certificate.serial,
        "DEVICE_NOT_AFTER": identity.certificate.not_after.isoformat(),
    }
    return run_confined(Confined(hook.run, environment, hook.timeout_seconds, hook.user), stop)


def main() -> None:
    """Exit code 0 if each hook was tried, 1 if not: the agent tries again."""
    line = b""
    while not line.endswith(b"\n") and (data := os.read(0, JOB_SIZE_MAX)):
        line += data
    try:
        job = json.loads(line)
        deploy(read_config(Path(job["home"])), job["hooks"], stop=0)
    except (Busy, ClientError, OSError) as error:
        with contextlib.suppress(OSError):
            print(f"{error}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
