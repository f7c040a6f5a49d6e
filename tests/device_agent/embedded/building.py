"""The C sources built for this machine, with the sanitizers where there are some."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

import device_agent

SOURCES = Path(device_agent.__file__).with_name("embedded")
HEADERS = Path("/usr/include/mbedtls")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
LIBRARIES = ("-lmbedtls", "-lmbedx509", "-lmbedcrypto")
# What needs no network; each is tested in memory.
PURE = ("parsers.c", "der.c", "mqtt_packets.c", "slots.c", "crypto_mbedtls.c")


def needed() -> None:
    """Skips, by name, where something to build with is missing."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    if not (HEADERS / "ssl.h").exists():
        pytest.skip("libmbedtls-dev is not installed")


@cache
def sanitizers() -> tuple[str, ...]:
    """None where gcc comes without their libraries."""
    words = ["gcc", *SANITIZERS, "-x", "c", "-", "-o", "/dev/null"]
    done = subprocess.run(words, input=b"int main(void) { return 0; }", capture_output=True, check=False)
    return SANITIZERS if done.returncode == 0 else ()


def build(program: Path, *sources: Path) -> Path:
    """The program, made without a warning."""
    words: list[str | Path] = ["gcc", *STRICT, *sanitizers(), "-I", SOURCES, "-o", program, *sources, *LIBRARIES]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return program


def device_program(folder: Path) -> Path:
    """`fleet-device` (host/main.c)."""
    return build(folder / "fleet-device", *sorted(SOURCES.glob("*.c")), *sorted(SOURCES.glob("host/*.c")))


def harness(folder: Path) -> Path:
    """harness.c beside this file."""
    return build(folder / "harness", Path(__file__).with_name("harness.c"), *(SOURCES / name for name in PURE))
