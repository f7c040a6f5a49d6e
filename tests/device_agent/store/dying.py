"""A renewal that dies at a chosen step. As a program it makes one home for each step there is to die at:

python -m tests.device_agent.store.dying FOLDER [SERIAL]     SERIAL: of a certificate that is current before
"""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from device_agent.store.identity_store import CertificateInfo, Identity, IdentityStore

BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)


def put(store: IdentityStore, serial: str) -> Identity:
    """A new candidate; the store does not look into key and certificate, so any bytes will do."""
    slot = store.spare_slot()
    store.clear(slot)
    store.write_key(slot, f"the key {serial}".encode())
    info = CertificateInfo("cam-7", serial, f"fp-{serial}", "CN=test", BEGIN, END)
    return store.complete(slot, f"certificate {serial}".encode(), info)


def renew_and_die(home: Path, steps: int) -> None:
    """Go from whatever is there to certificate 2, in a process that ends, as by kill -9, after `steps` steps."""

    def step(_: str) -> None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            os._exit(9)

    store = IdentityStore(home, step)
    candidate = put(store, "2")
    (home / "proven").touch()
    store.promote(candidate)
    os._exit(0)


def main() -> None:
    folder, serials = Path(sys.argv[1]), sys.argv[2:]
    step, code = 0, 9
    while code == 9:
        home = folder / f"dies at {step}"
        home.mkdir()
        for serial in serials:
            store = IdentityStore(home)
            store.promote(put(store, serial))
        child = os.fork()
        if child == 0:
            renew_and_die(home, step)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step += 1
    raise SystemExit(code)


if __name__ == "__main__":
    main()
