"""The pages of each program, and the quick start."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.pages import PAGES, PROJECT, blocks_of, run_page

FLEET = PROJECT / "fleet"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if not page.is_relative_to(FLEET)],
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_every_command_shown_does_what_the_page_says(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run_page(page, tmp_path, request)


@pytest.mark.parametrize("word", [(), ("nonsense",)])
def test_the_quick_start_says_how_it_is_used_from_another_folder(tmp_path: Path, word: tuple[str, ...]) -> None:
    script = os.path.relpath(PROJECT / ".quickstart", tmp_path)
    done = subprocess.run(["sh", script, *word], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "sh .quickstart demo" in done.stdout


def test_readme_and_ci_name_the_same_commands() -> None:
    quick = [block.strip() for block in blocks_of(PROJECT / "README.md") if ".quickstart" in block]
    assert quick == ["sh .quickstart demo", "sh .quickstart test"]
    assert (PROJECT / ".ci" / "run").read_text().rstrip().endswith('exec sh .quickstart test "$@"')
