"""The commands of README and docs: fenced `bash` blocks, each run by a test or marked why not."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a block's first line may say beside `bash`, and why such a block is not run by the test.
MARKS = {
    "setup": "makes environments and downloads packages; test_quick_start.py runs README's",
    "network": "reads sites or a hub",
    "gpu": "wants GPUs, or machines with them",
    "terminal": "wants somebody at a terminal or a browser",
    "minutes": "runs for minutes; make test-full does it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: Path
    line: int  # of its fence
    info: tuple[str, ...]  # the words behind the fence
    text: str

    @property
    def commands(self) -> list[str]:
        """Return its lines without comments, those that go on with `\\` as one."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        bare = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines)
        return [part.strip() for line in bare if line for part in line.split(" ; ")]

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(
            page=page,
            line=1 + text.count("\n", 0, found.start()),
            info=tuple(found[1].split()),
            text=found[2],
        )


def is_run(block: Block) -> bool:
    return block.info == ("bash",)


def words_of(command: str) -> list[str]:
    return shlex.split(command)[1:]
