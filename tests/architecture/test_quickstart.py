"""Which program `.quickstart` installs with."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".quickstart"


def installed_with(folder: Path, settings: str) -> str:
    """How the dependencies are installed where `pip config list` prints `settings`."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    python = f"""case "$*" in *"config list"*) echo "{settings}" ;; *) echo "pip $*" ;; esac"""
    for name, text in (("python", python), ("uv", 'echo "uv $*"')):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    text = SCRIPT.read_text("utf-8")
    functions = text[text.index("\npip() {") : text.index("\nhas_postgres() {")]
    script = f"set -eu\nsay() {{ :; }}\n{functions}\ntouch pyproject.toml\ninstall dev\n"
    return subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("settings", ["", "global.cert='/etc/ssl/ca.crt'", ":env:.disable-pip-version-check='1'"])
def test_uv_installs_without_settings_of_folders_above(tmp_path: Path, settings: str) -> None:
    assert installed_with(tmp_path, settings).startswith("uv --no-config pip install")


@pytest.mark.parametrize(
    "setting",
    [
        *("global.index-url", "install.extra-index-url", "global.no-index", "global.find-links", ":env:.find-links"),
        *("install.constraint", "install.require-hashes", "global.only-binary", "global.no-binary", "global.proxy"),
        "global.trusted-host",
    ],
)
def test_pip_installs_where_its_settings_say_what_and_from_where(tmp_path: Path, setting: str) -> None:
    assert installed_with(tmp_path, f"{setting}='x'").startswith("pip -m pip install")
