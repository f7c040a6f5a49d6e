"""A served fleet whose registry can't be written: nothing is issued, all are told to come back, and it recovers.

Two ways for a disk to say no: a file that may not grow, and an fsync that fails after every write has gone well.
"""

import asyncio
import base64
import json
import resource
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.domain.credential import Credential
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstBusy
from fleet.home.layout import Home, open_registry
from fleet.wire.csr import build_csr
from fleet.wire.est import encode_body
from hw_bench.cpu_time import process_tree
from tests.forks import executed
from tests.serving import ANY_PORTS, Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

FSYNC_FAILS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int ruled(const char *name, int fd) {
    const char *switched = getenv("FSYNC_FAILS_WHILE");
    if (switched && access(switched, F_OK) == 0) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return ruled("fsync", fd); }
int fdatasync(int fd) { return ruled("fdatasync", fd); }
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    run_fleet(tmp_path / "home", "init", str(tmp_path / "home"))
    return tmp_path / "home"


@contextmanager
def serving(home: Path, workers: str) -> Iterator[Served]:
    served = Served(home, home.parent / "ready.json", (*ANY_PORTS, "--workers", workers)).start()
    try:
        yield served
    finally:
        served.stop()


@contextmanager
def no_growth(served: Served) -> Iterator[None]:
    """No process of `served` may write beyond a file's first byte: the system says no, as on a full disk."""
    family = process_tree((served.process.pid,))
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in family}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    yield
    for pid, limits in before.items():
        # The limit is a signal, too, which ends the broker; it is started again.
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def no_fsync(switch: Path) -> Iterator[None]:
    """fsync fails in every process that was started under the shim."""
    switch.touch()
    yield
    switch.unlink()


def csr(device: str) -> bytes:
    return build_csr(ec.generate_private_key(ec.SECP256R1()), (("2.5.4.3", device),), ())


def est(served: Served, device: str, token: str) -> EstClient:
    return EstClient(served.est, served.ca_file, basic=(device, token), policy=Policy(patience_seconds=0))


def answer(served: Served, token: str) -> tuple[int, str, bytes]:
    """Status, Retry-After and body of an enrollment."""
    login = base64.b64encode(f"cam-raw:{token}".encode()).decode()
    request = urllib.request.Request(
        f"{served.est}/.well-known/est/simpleenroll",
        data=encode_body(csr("cam-raw")),
        headers={"Content-Type": "application/pkcs10", "Authorization": f"Basic {login}"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            request, context=ssl.create_default_context(cafile=served.ca_file), timeout=PATIENCE_SECONDS
        )
    with caught.value as error:
        return error.code, str(error.headers["Retry-After"]), error.read()


def issued(home: Path, *devices: str) -> list[Credential]:
    async def work() -> list[Credential]:
        registry = await open_registry(Home(home))
        try:
            return [one for device in devices for one in await registry.credentials(device)]
        finally:
            await registry.close()

    return asyncio.run(work())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_issues_nothing_and_is_over_when_it_is_over(home: Path, workers: str) -> None:
    with serving(home, workers) as served:
        nothing_is_issued_until_it_is_over(served, no_growth(served))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_fsync_that_fails(home: Path, tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc: not installed")
    source, shim, switch = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "fsync-fails"
    source.write_text(FSYNC_FAILS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    with monkeypatch.context() as shimmed:
        shimmed.setattr("tests.serving.Forked", executed)
        shimmed.setenv("LD_PRELOAD", str(shim))
        shimmed.setenv("FSYNC_FAILS_WHILE", str(switch))
        stack = ExitStack()
        served = stack.enter_context(serving(home, workers))
    with stack:
        nothing_is_issued_until_it_is_over(served, no_fsync(switch))


def nothing_is_issued_until_it_is_over(served: Served, trouble: AbstractContextManager[None]) -> None:
    token = run_fleet(served.home, "token", "create", "--model", "default", "--uses", "100").strip()
    est(served, "cam-before", token).simpleenroll(csr("cam-before"))
    kept = csr("cam-during")
    with trouble:
        for _ in range(4):  # with two workers, each is met
            status, retry_after, body = answer(served, token)
            assert (status, retry_after) == (503, "10")
            assert b"registry-unavailable" in body
            assert b"BEGIN CERTIFICATE" not in body
            with pytest.raises(EstBusy) as caught:
                est(served, "cam-during", token).simpleenroll(kept)
            assert caught.value.retry_after_seconds == 10
        assert issued(served.home, "cam-raw", "cam-during") == []
    certificate = est(served, "cam-during", token).simpleenroll(kept)
    assert [f"{certificate.serial_number:x}"] == [one.serial for one in issued(served.home, "cam-raw", "cam-during")]
    (row,) = json.loads(run_fleet(served.home, "token", "list", "-o", "json"))
    assert int(row["uses"]) == 2
    run_fleet(served.home, "audit", "verify")
    assert "event=worker.ended" not in served.log
    assert served.stop() == 0
