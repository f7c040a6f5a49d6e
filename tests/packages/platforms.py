"""Asks pip for which platforms PyPI has wheels of what a device needs: `python -m tests.packages.platforms`.

Prints the table of `device_agent/README.md`, in a minute or two. Nothing is installed.
Where a wheel is missing, pip builds the package on the device, with a compiler.
"""

import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.13")  # of Debian 12 and 13
EXTRAS = ("agent", "agent,board")
SECONDS_MAX = 300
AT_ONCE = 4


@dataclass(frozen=True)
class Platform:
    name: str
    machine: str
    libc: str
    minor: int
    """Of its C library: wheels for it, and for older ones, run there."""

    def tags(self) -> list[str]:
        """PEP 600, PEP 656."""
        first, major, old = (5, 2, ["manylinux2014"]) if self.libc == "manylinux" else (1, 1, [])
        names = [*(f"{self.libc}_{major}_{minor}" for minor in range(self.minor, first - 1, -1)), *old, "linux"]
        return [f"{name}_{self.machine}" for name in names]


PLATFORMS = (
    Platform("x86_64", "x86_64", "manylinux", 36),
    Platform("aarch64: Raspberry Pi OS, 64 bits", "aarch64", "manylinux", 36),
    Platform("armv7l: Raspberry Pi OS, 32 bits", "armv7l", "manylinux", 36),
    Platform("armv6l: Raspberry Pi Zero, 1", "armv6l", "manylinux", 36),
    Platform("riscv64", "riscv64", "manylinux", 41),
    Platform("x86_64, musl: Alpine, OpenWrt", "x86_64", "musllinux", 2),
    Platform("aarch64, musl", "aarch64", "musllinux", 2),
    Platform("armv7l, musl", "armv7l", "musllinux", 2),
)


ANYWHERE = Platform("what has no machine code", "none", "manylinux", 5)


class NoAnswer(Exception):
    """pip cannot answer, not even for what there must be."""


def requirements(extras: tuple[str, ...]) -> dict[str, str]:
    """What the extras ask for, and what that asks for in turn, as installed here: the requirements by their names."""
    found: dict[str, str] = {}
    waiting = [
        *PROJECT["dependencies"],
        *(each for extra in extras for each in PROJECT["optional-dependencies"][extra]),
    ]
    while waiting:
        asked = Requirement(waiting.pop(0))
        if asked.name not in found and (asked.marker is None or asked.marker.evaluate({"extra": ""})):
            found[asked.name] = f"{asked.name}{asked.specifier}"
            waiting += requires(asked.name) or []
    return found


@cache
def has_wheel(platform: Platform, python: str, requirement: str) -> bool:
    """Whether pip could install it there without building it."""
    words = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-deps"]
    words += ["--only-binary=:all:", "--target", "nothing-is-installed", "--implementation", "cp"]
    words += ["--python-version", python, *(word for tag in platform.tags() for word in ("--platform", tag))]
    # Wheels that were built on this machine are none of PyPI's.
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PIP_FIND_LINKS", "PIP_NO_INDEX")}
    done = subprocess.run(
        [*words, requirement], capture_output=True, env=surroundings, timeout=SECONDS_MAX, check=False
    )
    return done.returncode == 0


def table() -> str:
    """The page's table. Raises: NoAnswer."""
    native = [
        (name, requirement)
        for name, requirement in sorted(requirements(("agent", "board")).items())
        if not has_wheel(ANYWHERE, PYTHONS[0], requirement)
    ]
    if not has_wheel(PLATFORMS[0], PYTHONS[0], dict(native)["cryptography"]):
        raise NoAnswer("PyPI: pip finds no wheel of cryptography there, not even for x86_64")
    columns = [(python, extras) for extras in EXTRAS for python in PYTHONS]
    rows = ["| | " + " | ".join(f"`.[{extras}]`, {python}" for python, extras in columns) + " |", "| --- " * 5 + "|"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [(platform, python, each) for platform in PLATFORMS for python in PYTHONS for _, each in native]
        list(pool.map(has_wheel, *zip(*asked, strict=True)))
    for platform in PLATFORMS:
        cells = [platform.name]
        for python, extras in columns:
            wanted = requirements(tuple(extras.split(",")))
            missing = [name for name, each in native if name in wanted and not has_wheel(platform, python, each)]
            cells.append(f"builds {', '.join(missing)}" if missing else "wheels")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
