"""README.md and the pages of docs/, and the code blocks in them."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "BUILD_NOTES.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "experiments" / "zoo" / "README.md",
]

_BLOCK = re.compile(r"^```(?P<language>\w*)(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, the rest of its first line, and the line its code begins at."""

    language: str
    mark: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            match["language"],
            match["mark"].strip(),
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
        )
        for match in _BLOCK.finditer(text)
    ]


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))
