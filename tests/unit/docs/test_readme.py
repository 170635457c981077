"""README's tree is the tree: each package under its name, with the first line of its docstring."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "rnow"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def first_line(package: Path) -> str:
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def test_the_tree_of_the_readme_is_the_tree() -> None:
    shown = dict(re.findall(r"^      (\w+)/ +(.+)$", README, re.MULTILINE))
    packages = [path.parent for path in SOURCE.glob("*/__init__.py")]
    assert shown.pop("templates")  # data, without a docstring
    assert shown == {package.name: first_line(package) for package in packages}


def test_the_modules_beside_the_packages_are_in_the_tree() -> None:
    lines = "\n".join(re.findall(r"^      ((?:\w+\.py )+)", README, re.MULTILINE))
    assert set(lines.split()) == {"cli.py", "errors.py", "records.py"}
