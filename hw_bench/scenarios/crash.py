"""Durability: whether the registry is complete and consistent after any number of kill -9 during enrollments.

While clients enroll, workers are killed, now and then the supervisor or the database. At the end the certificates that
the clients hold are compared with the registry.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from fleet.domain.access import Act
from fleet.domain.changes import EventKind
from fleet.domain.credential import Credential, Token
from fleet.domain.device import EVERY_DEVICE, FIRST_PLACE, place_of
from fleet.domain.errors import Unavailable
from fleet.domain.ports import Registry
from fleet.home.layout import open_registry
from fleet.services.inventory import TokenTerms, create_token
from hw_bench.drivers.crash import PATIENCE_SECONDS, PAUSE_SECONDS, Clients, Received, Tokens
from hw_bench.peers.engine import Engine, engine_of
from hw_bench.peers.home import MODEL, FleetHome
from hw_bench.peers.killable_server import KillableServer
from hw_bench.processes import BenchError
from hw_bench.report import Report
from hw_bench.scenarios.contract import file_system, new_environment
from hw_bench.turns import Plan, Progress, machine

SUPERVISOR_SHARE = 0.04  # of the kills: each costs a whole start
ENGINE_SHARE = 0.25  # of the kills, where the registry has processes of its own
CERTIFICATES_BETWEEN_KILLS_MAX = 5
DELAY_SECONDS_MAX = 0.05  # so that a kill hits any phase of a worker, start-up included
TOKEN_USES = (3, 40)  # at least, at most
TOKENS_AT_ONCE = 20
PROGRESS_EVERY = 25
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Crash:
    """Kills under load, then verification. A failed verification fails the run."""

    name: str = "crash"
    workers: int = 2
    clients: int = 4

    def description(self) -> str:
        return (
            f"kill -9 of `fleet serve --workers {self.workers}`, worker or supervisor, and of the database's own "
            f"processes, under {self.clients} clients that enroll and retry; then every certificate, token use and "
            "event is accounted for"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        seed = random.SystemRandom().randrange(1 << 32) if plan.seed is None else plan.seed
        progress(f"seed {seed}: --seed {seed} repeats the same draws")
        chance = random.Random(seed)  # noqa: S311  reproducible draws, not secrets
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            cores = environment.cores.together()
            engine = engine_of(plan.database)
            stack.callback(engine.stop)
            engine.start()
            home = engine.home(environment.folder / "home")
            serve = stack.enter_context(KillableServer(home, environment.folder, self.workers, cores.all))
            tokens = Tokens(lambda: new_tokens(home))
            with Clients(serve.est, MODEL, self.clients, tokens) as clients:
                try:
                    killed = _kill(plan.kills, chance, engine, serve, clients, progress)
                    # More than the clients can have had under way: it has recovered from the last kill too.
                    clients.wait_for(len(clients.received) + self.clients + 1)
                except BenchError as error:
                    raise BenchError(f"{error} The server's log ends with: {serve.log_tail()}.") from error
            if code := serve.stop():
                raise BenchError(f"fleet serve ended with exit code {code} when it was stopped.")
            progress("comparing every certificate, token and event with the registry")
            checks = (
                f"{plan.kills} kills, {killed.words(engine)}; seed {seed}",
                serve.restart_summary(),
                *prove(home, clients.received),
                f"{clients.unanswered:,} attempts were not answered and made again",
                f"the registry is {engine.name} on {file_system(environment.folder)}",
            )
            return Report(
                self.name, self.description(), "certificates", 0.0, 0, machine(cores), (), (), (), (), checks=checks
            )


@dataclass(frozen=True, slots=True)
class Killed:
    """How many kills hit the supervisor and the database."""

    supervisors: int = 0
    engine: int = 0

    def words(self, engine: Engine) -> str:
        also = f", {self.engine} of {engine.name}" if engine.pids else ""
        return f"{self.supervisors} of them of the supervisor{also}"


def _kill(
    kills: int, chance: random.Random, engine: Engine, serve: KillableServer, clients: Clients, progress: Progress
) -> "Killed":
    """Kill `kills` processes, and report which."""
    killed = Killed()
    for number in range(1, kills + 1):
        clients.wait_for(len(clients.received) + chance.randint(0, CERTIFICATES_BETWEEN_KILLS_MAX))
        clients.pause(chance.uniform(0, DELAY_SECONDS_MAX))
        drawn = chance.random()
        if drawn < SUPERVISOR_SHARE:
            serve.kill_supervisor()
            engine.kill()  # a power cut takes both
            engine.start()
            serve.start()
            killed = replace(killed, supervisors=killed.supervisors + 1)
        elif drawn < SUPERVISOR_SHARE + ENGINE_SHARE and engine.kill_one(chance):
            killed = replace(killed, engine=killed.engine + 1)
        else:
            while not serve.kill_worker(chance):
                clients.pause(DELAY_SECONDS_MAX)
        if number % PROGRESS_EVERY == 0 or number == kills:
            progress(f"{number} of {kills} kills, {killed.words(engine)}; {len(clients.received):,} certificates")
    return killed


def new_tokens(home: FleetHome) -> list[str]:
    """Tokens for many devices each, as texts. Raises: Unavailable when the database does not come back."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return asyncio.run(_create_tokens(home))
        except Unavailable:  # it has been killed; tokens created meanwhile are unknown and stay unused
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


async def _create_tokens(home: FleetHome) -> list[str]:
    registry = await open_registry(home.files)
    try:
        made = []
        for _ in range(TOKENS_AT_ONCE):
            terms = TokenTerms(random.randint(*TOKEN_USES))  # noqa: S311  reproducible draws, not secrets
            made.append(await create_token(registry, model=MODEL, terms=terms, act=Act("operator", datetime.now(UTC))))
        return [text for _, text in made]
    finally:
        await registry.close()


def prove(home: FleetHome, received: Sequence[Received]) -> tuple[str, ...]:
    """Verify a home after its server has stopped: one sentence for each check.

    Raises: BenchError when a check fails.
    """
    issued, tokens, events = asyncio.run(read(home))
    home.fleet("audit", "verify")
    return (
        prove_certificates(issued, received),
        prove_tokens(issued, tokens, received),
        prove_events(issued, events),
        "the audit's chain verifies",
    )


Seen = tuple[int, str, str]
"""An event's sequence, kind and detail."""


async def read(home: FleetHome) -> tuple[list[Credential], list[Token], list[Seen]]:
    """All certificates issued to devices, all tokens, all events in order."""
    registry = await open_registry(home.files)
    try:
        return await _credentials(registry), await registry.tokens(), await _events(registry)
    finally:
        await registry.close()


async def _credentials(registry: Registry) -> list[Credential]:
    found: list[Credential] = []
    after = FIRST_PLACE
    while page := await registry.devices(after=after, limit=PAGE):
        for device in page:
            found += await registry.credentials(device.id)
        after = place_of(page[-1], EVERY_DEVICE)
    return found


async def _events(registry: Registry) -> list[Seen]:
    found: list[Seen] = []
    while page := await registry.events(after=found[-1][0] if found else 0, limit=PAGE):
        found += [(event.seq, event.kind, event.detail) for event in page]
    return found


def prove_certificates(issued: Sequence[Credential], received: Sequence[Received]) -> str:
    """Raises: BenchError: a certificate that a client holds is not in the registry, or a serial was given twice."""
    known = {credential.fingerprint.hex(): credential for credential in issued}
    for one in received:
        credential = known.get(one.fingerprint)
        if credential is None:
            raise BenchError(f"{one.device} holds a certificate that is not in the registry: {one.fingerprint}.")
        if (credential.holder, credential.serial) != (one.device, one.serial):
            raise BenchError(f"The certificate of {one.device} is in the registry as that of {credential.holder}.")
    twice = [serial for serial, times in Counter(credential.serial for credential in issued).items() if times > 1]
    if twice:
        raise BenchError(f"A serial was given twice: {twice[0]}.")
    return f"all {len(received):,} certificates received are in the registry; no serial twice in {len(issued):,} issued"


def prove_tokens(issued: Sequence[Credential], tokens: Sequence[Token], received: Sequence[Received]) -> str:
    """Raises: BenchError: a token was used too often, or its uses are not the certificates issued by it."""
    earned = Counter(credential.grant for credential in issued)
    grants = {credential.fingerprint.hex(): credential.grant for credential in issued}
    for token in tokens:
        if token.uses > token.uses_max:
            raise BenchError(f"Token {token.id} was used {token.uses} times of {token.uses_max}.")
        if token.uses != earned[f"token {token.id}"]:
            count = earned[f"token {token.id}"]
            raise BenchError(f"Token {token.id} counts {token.uses} uses, and {count} certificates were issued by it.")
    for one in received:
        if grants.get(one.fingerprint) != f"token {one.token}":
            raise BenchError(
                f"{one.device} asked with token {one.token} and was served by {grants.get(one.fingerprint)}."
            )
    full = sum(token.uses == token.uses_max for token in tokens)
    return f"{len(tokens)} tokens, {full} used up: none too often, and uses = certificates issued by each"


def prove_events(issued: Sequence[Credential], events: Sequence[Seen]) -> str:
    """Raises: BenchError: a gap, or a certificate without its event, or with two."""
    if [seq for seq, _, _ in events] != list(range(1, len(events) + 1)):
        raise BenchError("The feed of events has a gap.")
    recorded = Counter(detail for _, kind, detail in events if kind == EventKind.CREDENTIAL_ISSUED)
    if recorded != Counter(credential.fingerprint.hex() for credential in issued):
        raise BenchError("The certificates issued and the events recorded for them differ.")
    return f"{len(events):,} events without a gap, one of them for each certificate issued"
