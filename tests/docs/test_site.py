"""The site: every page is in its table of contents, its pictures and links exist, and it loads nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]


def listed(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [name for part in parts for name in listed(part)]  # pyright: ignore[reportGeneralTypeIssues]


def test_every_page_is_in_the_contents_once() -> None:
    names = listed(CONFIG["nav"])
    assert sorted(names) == sorted(str(page.relative_to(DOCS)) for page in PAGES)
    assert len(PAGES) >= 25


def test_the_site_is_strict_and_offline() -> None:
    assert CONFIG["theme"]["font"] is False
    assert set(CONFIG["validation"]["links"].values()) == {"warn"}  # --strict makes errors of them
    assert not [name for key in ("extra_css", "extra_javascript") for name in CONFIG.get(key, []) if "//" in name]


def test_it_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'percepta[dev]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("index.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        fetched = re.findall(
            r"<(?:script|img|iframe|source)[^>]+src=\"(https?:[^\"]+)|<link[^>]+stylesheet[^>]+href=\"(https?:[^\"]+)",
            page.read_text(),
        )
        assert not fetched, f"{page} loads {fetched}"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_links_lead_somewhere(text: Path) -> None:
    """Pictures too; mkdocs checks the pages below docs/ and their anchors once more when it builds."""
    prose = re.sub(r"^\s*```.*?^\s*```", "", text.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+://|#|mailto:", target):
            assert (text.parent / target.split("#")[0]).exists(), f"{text.name} links to {target}"


def test_every_recipe_is_in_the_readme_and_in_the_contents() -> None:
    from percepta.recipes import recipes

    readme = (ROOT / "README.md").read_text()
    for name in recipes():
        assert f"| [`{name}`](docs/recipes/{name}.md) |" in readme
        assert f"recipes/{name}.md" in listed(CONFIG["nav"])


def test_every_term_of_the_glossary_is_there_once() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(), flags=re.MULTILINE)
    assert len(terms) == len(set(terms)) >= 30
    assert terms == sorted(terms, key=str.casefold)
