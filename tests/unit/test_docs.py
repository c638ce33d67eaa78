"""The pages are true to the tree: modules, links, commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from jobs.errors import Exit

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def test_the_module_map_is_the_tree() -> None:
    text = (ROOT / "docs/01-architecture.md").read_text("utf-8")
    block = text.split("## Module map", 1)[1].split("```")[1]
    told: dict[str, list[str]] = {}
    folder = ""
    for line in block.strip().splitlines():
        first, *names = line.split()
        if line[0] != " ":
            folder, names = first.rstrip("/"), names
        else:
            names = [first, *names]
        told.setdefault(folder, []).extend(names)
    found: dict[str, list[str]] = {}
    for top in ("jobs", "producer", "worker"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if path.stem != "__init__":
                found.setdefault(str(path.parent.relative_to(ROOT)), []).append(path.stem)
    assert told == found


def test_pages_are_numbered_and_say_what_to_rely_on() -> None:
    for number, page in enumerate(PAGES, 1):
        assert page.name.startswith(f"{number:02d}-"), page.name
        if page.name != "15-guarantees.md":  # all of it is that
            headings = re.findall(r"^## (.*)$", page.read_text("utf-8"), re.MULTILINE)
            assert headings[-1] == "What you can rely on", page.name
            assert len(set(headings)) == len(headings), page.name


def test_the_readme_tells_all_exit_codes() -> None:
    said = (ROOT / "README.md").read_text("utf-8").split("Exit codes: ", 1)[1].split("##", 1)[0]
    assert sorted(map(int, re.findall(r"\b\d+\b", said))) == sorted(Exit)


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_pages_that_the_code_names_exist() -> None:
    """Also in errors and help texts."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "*.yml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        if name == "CHANGELOG.md" or not (ROOT / name).is_file():
            continue
        for page in re.findall(r"docs/[\w-]+\.md", (ROOT / name).read_text("utf-8")):
            assert (ROOT / page).exists(), f"{name} names {page}"


def test_files_that_the_pages_name_exist() -> None:
    known = ("jobs/", "producer/", "worker/", "tests/", "configs/", "benchmarks/")
    for page in TEXTS:
        for path in re.findall(r"`([\w./-]+\.(?:py|toml|jsonl))`", page.read_text("utf-8")):
            if path.startswith(known):
                assert (ROOT / path).exists(), f"{page.name} names {path}"
