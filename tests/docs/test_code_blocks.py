"""The documentation runs: every python and shell block of every page, in the page's order, in an empty folder.

A page's blocks share one folder and one namespace. Shell blocks may hold `percepta ...` lines only (a `$ ` before them, comments and
backslashes at line ends are fine; in ```console blocks every line without `$ ` is output and is not compared). What cannot run here has
a comment of its own line above the block: `<!-- skip: reason -->`.
"""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from percepta.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("bash", "sh", "console")
COUNT_RUN, COUNT_SKIPPED = 67, 20  # blocks in all pages: a page that the search misses, or a block that it cannot read, shows here


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    skip: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line for line in lines if line.startswith("$ ")]
        plain = (line.removeprefix("$ ").split("   #")[0].strip() for line in lines)
        return [line for line in plain if line and not line.startswith("#")]


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    lines = (page.read_text() if text is None else text).splitlines()
    out, start, fence, language, skip = [], 0, "", "", None
    for number, line in enumerate(lines, 1):
        mark = re.match(r"\s*(```+)\s*([\w+-]*)", line)
        if not fence and mark:
            fence, language, start = mark[1], mark[2], number
            before = next((past.strip() for past in reversed(lines[: number - 1]) if past.strip()), "")
            comment = re.fullmatch(r"<!-- skip: (.+) -->", before)
            skip = comment[1] if comment else None
        elif fence and line.strip() == fence:
            if language == "python" or language in SHELLS:
                indent = len(lines[start - 1]) - len(lines[start - 1].lstrip())
                out.append(Block(page, start, language, "\n".join(past[indent:] for past in lines[start : number - 1]), skip))
            fence = ""
    assert not fence, f"{page}: the block of line {start} does not end"
    return out


BLOCKS = {page: blocks_of(page) for page in PAGES}
RUN = {page: [b for b in blocks if b.skip is None] for page, blocks in BLOCKS.items()}


def run_shell(block: Block) -> None:
    for command in block.commands:
        words = shlex.split(command)
        assert words[0] == "percepta", f"{block.name}: only percepta commands run here, got {command!r}; mark the block as skipped"
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            try:
                code = main(words[1:])
            except SystemExit as stop:  # --help
                code = stop.code or 0
        assert code == 0, f"{block.name}: {command!r} ended with {code}:\n{told.getvalue()}"


def run_python(block: Block, names: dict[str, object]) -> None:
    code = compile("\n" * block.line + block.text, str(block.page), "exec")  # tracebacks name the page and its line
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)


@pytest.mark.parametrize("page", [page for page, blocks in RUN.items() if blocks], ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERCEPTA_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "__page__"}
    for block in RUN[page]:
        if block.language == "python":
            run_python(block, names)
        else:
            run_shell(block)


def test_all_blocks_are_found() -> None:
    every = [block for blocks in BLOCKS.values() for block in blocks]
    found = (sum(b.skip is None for b in every), sum(b.skip is not None for b in every))
    assert found == (COUNT_RUN, COUNT_SKIPPED), f"{found} blocks run and are skipped: correct the counts above if that is meant"
    assert len(PAGES) >= 25


def test_every_recipe_has_a_page_that_runs_it() -> None:
    from percepta.recipes import recipes

    for name in recipes():
        commands = [c for b in RUN.get(ROOT / "docs" / "recipes" / f"{name}.md", []) if b.language in SHELLS for c in b.commands]
        assert any(command.startswith(f"percepta train {name} ") for command in commands), f"no example of {name} runs"


PLANTED = """
```python
x = 1
```
<!-- skip: needs two GPUs -->

```bash
torchrun train
```
```console
$ percepta train ddpm \\
    --steps 3      # three steps
step 3/3
```
```json
{}
```
"""


def test_blocks_are_read_as_written() -> None:
    python, skipped, console = blocks_of(ROOT / "README.md", PLANTED)
    assert (python.language, python.text, python.line, python.skip) == ("python", "x = 1", 2, None)
    assert skipped.skip == "needs two GPUs"
    assert [" ".join(c.split()) for c in console.commands] == ["percepta train ddpm --steps 3"]


@pytest.mark.parametrize("text", ["```python\nassert 1 == 2\n```", "```bash\npercepta trian\n```", "```bash\nls\n```"])
def test_a_broken_block_fails(text: str) -> None:
    (block,) = blocks_of(ROOT / "README.md", text)
    with pytest.raises(AssertionError):
        if block.language == "python":
            run_python(block, {})
        else:
            run_shell(block)
