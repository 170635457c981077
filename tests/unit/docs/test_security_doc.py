import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_tests_that_docs_name_are_there() -> None:
    tests = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    assert len(named) > 30
    assert named - tests == set()
