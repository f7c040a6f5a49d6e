"""Mutation run: do a module's own tests notice when it is changed? `sh .quickstart mutate fleet.domain.renewal`

Each mutant (mutants.py) is written into a copy of the project, where the module's own tests run until one fails. Those
are the tests that import it from the folder that mirrors its package, or, if there are none, from anywhere; `--tests`
names others. What survives is printed: a line that no test holds, or a change that makes no difference.
"""

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from tests.mutation.mutants import Mutant, mutants_of

PROJECT = Path(__file__).parents[2]
TIMEOUT_MIN_SECONDS = 10.0
TIMEOUT_FACTOR = 5  # times what the tests take on the module as it is
MEMORY_MAX_BYTES = 2 * 1024**3  # a mutant may loop for ever, and fill a list while at it
POLL_SECONDS = 0.01
PYTEST = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:schemathesis", "--hypothesis-seed=0")
PRELOADED = frozenset(
    {"OpenSSL", "aiohttp", "asn1crypto", "asyncpg", "click", "cryptography", "hypothesis", "msgspec", "uvloop"}
)


@dataclass(frozen=True)
class Score:
    """What became of the mutants of one module."""

    module: str
    tests: tuple[str, ...]
    killed: int
    survived: tuple[Mutant, ...]

    @property
    def percent(self) -> float:
        count = self.killed + len(self.survived)
        return 100 * self.killed / count if count else 100.0

    def as_json(self) -> dict[str, object]:
        return {
            "module": self.module,
            "tests": list(self.tests),
            "killed": self.killed,
            "survived": [{"line": each.line, "change": each.change} for each in self.survived],
            "percent": round(self.percent, 1),
        }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="fleet.domain.renewal, or fleet/domain/renewal.py")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="the tests to run instead of the module's own")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at once (default: %(default)s)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants of each module, always the same ones")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT", help="exit 1 below this score")
    parser.add_argument("-o", dest="output", choices=("text", "json"), default="text")
    given = parser.parse_args(words)
    scores = []
    for module in given.modules:
        path = _file_of(module)
        if path is None:
            parser.error(f"{module}: no such module")
        tests = given.tests or own_tests(path)
        if not tests:
            parser.error(f"no test imports {path}; name some with --tests")
        score = run(path, tests, jobs=given.jobs, sample=given.sample)
        scores.append(score)
        if given.output == "text":
            for each in score.survived:
                print(f"{path}:{each.line}: survived: {each.change}")
            print(f"{path}: {score.killed} killed, {len(score.survived)} survived: {score.percent:.1f} %", flush=True)
    if given.output == "json":
        print(json.dumps([score.as_json() for score in scores], indent=2))
    return int(any(score.percent < given.at_least for score in scores))


def _file_of(module: str) -> str | None:
    for path in (module, module.replace(".", "/") + ".py", module.replace(".", "/") + "/__init__.py"):
        if path.endswith(".py") and (PROJECT / path).is_file():
            return str((PROJECT / path).relative_to(PROJECT))
    return None


def own_tests(path: str) -> list[str]:
    """The test files of the module at `path`, namesakes first.

    They are those that bear its name or import it in the folder that mirrors its package, or else those there that
    import one of its importers, or else those that import it from anywhere.
    """
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    tests = sorted(PROJECT.glob("tests/**/test_*.py"))
    importing = [test for test in tests if _imports(test, {module})]
    mirror = folder = PROJECT / "tests" / Path(path).parent.relative_to("fleet" if path.startswith("fleet/") else ".")
    while not folder.is_dir():
        folder = folder.parent
    parent, name = module.split(".")[-2:]
    names = {f"test_{name}"} if folder == mirror else {f"test_{parent}_{name}"}
    chosen = [test for test in tests if test.parent == folder and test.stem in names]
    chosen += [test for test in importing if folder != PROJECT / "tests" and test.is_relative_to(folder)]
    if not chosen:
        sources = PROJECT.glob(f"{module.split('.')[0]}/**/*.py")
        importers = {_module_of(source) for source in sources if _imports(source, {module})}
        chosen = [test for test in tests if test.is_relative_to(folder) and _imports(test, importers)]
    return [str(test.relative_to(PROJECT)) for test in dict.fromkeys(chosen or importing)]


def _module_of(file: Path) -> str:
    return str(file.relative_to(PROJECT)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(file: Path, modules: set[str]) -> bool:
    """Whether `file` imports one of `modules`. Parsed only if it may: most don't."""
    source = file.read_bytes()
    if not any(module.rsplit(".", 1)[-1].encode() in source for module in modules):
        return False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        else:
            continue
        if names & modules:
            return True
    return False


def run(path: str, tests: Sequence[str], *, jobs: int, sample: int | None = None, project: Path = PROJECT) -> Score:
    """Run `tests` on each mutant of the module at `path`, `jobs` of them at once.

    Raises: SystemExit if the tests do not pass on the module as it is.
    """
    source = (project / path).read_bytes()
    mutants = mutants_of(source)
    if sample is not None and sample < len(mutants):
        mutants = sorted(random.Random(0).sample(mutants, sample), key=lambda each: each.line)
    with _copies(project, min(jobs, len(mutants)) or 1) as copies:
        begun = time.monotonic()
        first = _Run(copies[0], path, source, tests, timeout=600)
        while first.poll() is None:
            time.sleep(POLL_SECONDS)
        if first.poll() != 0:
            raise SystemExit(f"Error: {' '.join(tests)} do not pass on {path} as it is.")
        timeout = max(TIMEOUT_MIN_SECONDS, TIMEOUT_FACTOR * (time.monotonic() - begun))
        _import_libraries(first.loaded())
        survived = _run_all(mutants, copies, path, tests, timeout)
    return Score(path, tuple(tests), len(mutants) - len(survived), tuple(survived))


def _run_all(
    mutants: Sequence[Mutant], copies: Sequence[Path], path: str, tests: Sequence[str], timeout: float
) -> list[Mutant]:
    waiting, free, survived = list(reversed(mutants)), list(copies), []
    running: dict[Path, tuple[Mutant, _Run]] = {}
    while waiting or running:
        while waiting and free:
            copy, mutant = free.pop(), waiting.pop()
            running[copy] = mutant, _Run(copy, path, mutant.source, tests, timeout)
        time.sleep(POLL_SECONDS)
        for copy, (mutant, each) in list(running.items()):
            code = each.poll()
            if code is not None:
                del running[copy]
                free.append(copy)
                if code == 0:
                    survived.append(mutant)
    return sorted(survived, key=lambda each: (each.line, each.change))


class _Run:
    """The tests on one source of the module, in a forked process: the libraries are loaded already."""

    def __init__(self, copy: Path, path: str, source: bytes, tests: Sequence[str], timeout: float) -> None:
        self.copy = copy
        self.until = time.monotonic() + timeout
        self.code: int | None = None
        target = copy / path
        target.write_bytes(source)
        for compiled in target.parent.glob(f"__pycache__/{target.stem}.*"):  # it is known by size and second alone
            compiled.unlink()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._test(tests)

    def _test(self, tests: Sequence[str]) -> None:
        code = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            sys.stdout = sys.stderr = os.fdopen(nothing, "w")
            os.chdir(self.copy)
            for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
                del sys.modules[name]
            sys.path[:] = [str(self.copy), *(each for each in sys.path if Path(each or ".").resolve() != PROJECT)]
            os.environ["PYTHONPATH"] = str(self.copy)
            code = int(pytest.main([*PYTEST, *tests]))
            self._loaded.write_text("\n".join(name for name, module in list(sys.modules.items()) if _library(module)))
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The tests' exit code, once they have ended; after the deadline they are ended."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if not done and time.monotonic() > self.until:
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                done, status = os.waitpid(self.pid, 0)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)  # what the tests have left running
        return self.code

    @property
    def _loaded(self) -> Path:
        return self.copy / ".loaded"

    def loaded(self) -> list[str]:
        """The libraries that the tests had loaded at their end."""
        return self._loaded.read_text().split("\n")


def _library(module: object) -> bool:
    return "site-packages" in (getattr(module, "__file__", None) or "")


def _import_libraries(names: Sequence[str]) -> None:
    for name in names:
        if name.split(".")[0] in PRELOADED:
            with suppress(Exception):
                import_module(name)


@contextmanager
def _copies(project: Path, count: int) -> Iterator[list[Path]]:
    """Copies of the project as it is checked out, with what is not committed yet."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(listed, capture_output=True, check=True, cwd=project).stdout.decode()
    files = [name for name in answer.split("\0") if name]
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copies = [Path(folder) / str(at) for at in range(count)]
        for copy in copies:
            for name in files:
                if (project / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(project / name, copy / name)
        yield copies


if __name__ == "__main__":
    sys.exit(main())
