"""Coverage-guided fuzzing of every decoder: `python -m tests.fuzz.run --help`. It takes `pip install -e '.[dev,fuzz]'`.

Each target runs in a process of its own, which libFuzzer drives. What it finds new coverage with is kept beside this
file, minimized, and runs as a plain test ever after (test_corpus.py).
"""

import argparse
import hashlib
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
RSS_MAX_MB = 1024
INPUT_SIZE_MAX = 16 * 1024
INPUT_SECONDS_MAX = 10  # that one input may take
KEPT_SIZE_MAX = 2048  # of an input that goes into the repository
KEPT_MAX = 40  # a target


@dataclass(frozen=True)
class Result:
    target: str
    executions: int
    seconds: float
    rss_mb: int
    crash: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="which decoders; all when none is named")
    parser.add_argument("--runs", type=int, default=100_000, help="executions of each target (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=600, help="and at most so long for each (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep a minimized corpus beside this program")
    parser.add_argument("--one", metavar="TARGET", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        drive(given.one, given.targets)
        return
    from tests.fuzz.targets import TARGETS

    unknown = sorted(set(given.targets) - set(TARGETS))
    if unknown:
        parser.error(f"{unknown[0]} is no target; there are {', '.join(TARGETS)}")
    results = []
    for name in given.targets or TARGETS:
        results.append(fuzz(name, given.runs, given.seconds, keep=given.keep))
        shown = results[-1]
        print(
            f"{shown.target:18} {shown.executions:>10,} executions {shown.seconds:7.1f} s {shown.rss_mb:>5} MB  "
            f"{shown.crash or 'no crash'}",
            flush=True,
        )
    crashes = [result for result in results if result.crash]
    total = sum(result.executions for result in results)
    print(f"{total:,} executions, {len(crashes)} crashes, peak RSS {max(r.rss_mb for r in results)} MB")
    raise SystemExit(1 if crashes else 0)


def fuzz(name: str, runs: int, seconds: int, *, keep: bool) -> Result:
    """Run libFuzzer on one target, in a process of its own."""
    from tests.fuzz.seeds import seeds

    found = HERE / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (found / f"seed-{number}").write_bytes(seed)
    options = [f"-runs={runs}", f"-max_total_time={seconds}", f"-rss_limit_mb={RSS_MAX_MB}", "-print_final_stats=1"]
    options += [
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-max_len={INPUT_SIZE_MAX}",
        f"-artifact_prefix={found}/crash-",
        "-verbosity=0",
    ]
    started = time.monotonic()
    done = _program(name, [*options, str(found), str(kept)])
    said = done.stderr + done.stdout
    crash = "" if done.returncode == 0 else _last_words(said)
    result = Result(
        name,
        _number(r"stat::number_of_executed_units:\s*(\d+)", said),
        time.monotonic() - started,
        _number(r"stat::peak_rss_mb:\s*(\d+)", said),
        crash,
    )
    if keep and not crash:
        _keep(found, kept)
    return result


def _keep(found: Path, kept: Path) -> None:
    """Of the inputs that brought new coverage the shortest: each still says something that no shorter one does."""
    for old in kept.iterdir():
        old.unlink()
    small = sorted(found.iterdir(), key=lambda file: (file.stat().st_size, file.name))
    for file in [file for file in small if file.stat().st_size <= KEPT_SIZE_MAX][:KEPT_MAX]:
        shutil.copy(file, kept / hashlib.sha256(file.read_bytes()).hexdigest()[:16])


def _program(name: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.run", "--one", name, "--", *options]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def drive(name: str, options: Sequence[str]) -> None:
    """Be the fuzzer of one target, until libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["fleet", "asn1crypto", "cbor2", "cobs"]):
        from tests.fuzz.targets import TARGETS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "Exception" in line or "ERROR" in line]
    return (errors or lines or ["it ended without a word"])[-1][:200]


if __name__ == "__main__":
    main()
