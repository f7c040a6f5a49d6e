"""Links between the pages lead to a file and a heading that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".github", "device_agent", "firmware_tools", "fleet", "hw_bench")
PAGES = [
    "README.md",
    *(str(page.relative_to(ROOT)) for name in FOLDERS for page in sorted((ROOT / name).rglob("*.md"))),
]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


MAPS = (
    "backup", "ca", "client", "config", "domain", "home", "runtime", "servers/admin", "services", "storage", "tls",
    "webhook", "wire",
)  # fmt: skip


@pytest.mark.parametrize("package", MAPS)
def test_a_page_names_the_files_of_its_package(package: str) -> None:
    folder = ROOT / "fleet" / package
    page = (folder / "README.md").read_text("utf-8")
    files = {file.name for file in folder.glob("*.py")} - {"__init__.py"}
    named = {name for name in files if f"`{name}`" in page or f"| `{name.removesuffix('.py')}` |" in page}
    assert named == files


def test_the_agents_page_names_the_files_of_each_room() -> None:
    """Or the room's own page does."""
    root = ROOT / "device_agent"
    page = (root / "README.md").read_text("utf-8")
    for file in root.rglob("*.py"):
        own = file.parent / "README.md"
        text = page + own.read_text("utf-8") if own.exists() else page
        assert file.name.startswith("__") or re.search(rf"\b{re.escape(file.name)}", text), file
