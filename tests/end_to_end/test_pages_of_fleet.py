"""The pages within `fleet/`."""

from pathlib import Path

import pytest

from tests.end_to_end.pages import PAGES, PROJECT, run_page


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.is_relative_to(PROJECT / "fleet")],
    ids=lambda page: str(page.relative_to(PROJECT)),
)
def test_every_command_shown_does_what_the_page_says(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run_page(page, tmp_path, request)
