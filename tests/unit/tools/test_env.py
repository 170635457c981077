from pathlib import Path

import pytest

from rnow.errors import ConfigError
from rnow.tools.env import fixed_variables, load_dotenv, worker_environment


def write(folder: Path, text: str) -> Path:
    file = folder / ".env"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("A=1", {"A": "1"}),
        ("\n# comment\n  \nexport A = 1  \n", {"A": "1"}),
        ("A=a#b # comment\nB= # only a comment\nC=\n", {"A": "a#b", "B": "", "C": ""}),
        ("A='it is $X \\n' # c\nB=\"x\"#c\n", {"A": "it is $X \\n", "B": "x"}),
        ('A="a \\"b\\" \\\\ \\n"\n', {"A": 'a "b" \\ \n'}),
        ('KEY="-----BEGIN\nabc\n-----END"\nB=2\n', {"KEY": "-----BEGIN\nabc\n-----END", "B": "2"}),
        ("A=x=y?z&\r\nB=2\r\n", {"A": "x=y?z&", "B": "2"}),
        ("\ufeffA=1\nA=2\n", {"A": "2"}),
        ("", {}),
    ],
)
def test_dotenv_is_read(tmp_path: Path, text: str, values: dict[str, str]) -> None:
    assert load_dotenv(write(tmp_path, text)) == values


@pytest.mark.parametrize(
    ("text", "line"),
    [("A=1\n\nnonsense\n", 3), ('A="x\ny"\nB="open\n', 3), ("A='x' y\n", 1), ("1A=2\n", 1)],
)
def test_a_line_that_is_no_assignment_is_named_and_not_shown(
    tmp_path: Path, text: str, line: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dotenv(write(tmp_path, text))
    assert str(caught.value) == f".env:{line}: not of the form NAME=value"


def test_no_file_is_no_variables(tmp_path: Path) -> None:
    assert load_dotenv(tmp_path / ".env") == {}


SHELL = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LC_ALL": "de_DE.UTF-8",
    "TZ": "Asia/Tokyo",
    "PYTHONHASHSEED": "7",
    "OPENAI_API_KEY": "no",
    "hf_token": "no",
    "EDITOR": "vi",
    "HTTPS_PROXY": "http://me:password@proxy",
    "NCBI_API_KEY": "of the shell",
}


# Who goes on with a run from another terminal goes on with the same one.
SAME_FOR_ALL = {"TZ": "UTC", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def test_a_project_may_choose_its_clock_and_its_language(tmp_path: Path) -> None:
    write(tmp_path, "LC_ALL=fr_FR.UTF-8\n")
    environment = worker_environment(tmp_path, shell=SHELL, names=("TZ",))
    assert (environment["TZ"], environment["LC_ALL"]) == ("Asia/Tokyo", "fr_FR.UTF-8")


def test_what_a_run_began_with_stays_whatever_the_project_says_now(tmp_path: Path) -> None:
    assert fixed_variables(tmp_path, shell=SHELL, names=("NOWHERE",)) == SAME_FOR_ALL
    write(tmp_path, "LC_ALL=fr_FR.UTF-8\n")
    now = fixed_variables(tmp_path, shell=SHELL, names=("TZ",))
    assert now == {**SAME_FOR_ALL, "TZ": "Asia/Tokyo", "LC_ALL": "fr_FR.UTF-8"}
    environment = worker_environment(tmp_path, shell=SHELL, names=("TZ",), kept=SAME_FOR_ALL)
    assert {name: environment[name] for name in SAME_FOR_ALL} == SAME_FOR_ALL


def test_of_the_shell_only_plumbing_and_named_variables_pass(tmp_path: Path) -> None:
    write(tmp_path, "NCBI_API_KEY=of the file\nDB_PASSWORD=x\nHOME=/data\n")
    environment = worker_environment(tmp_path, shell=SHELL, names=("NCBI_API_KEY",))
    assert environment == {
        **SAME_FOR_ALL,
        "PATH": "/bin",
        "HOME": "/data",
        "DB_PASSWORD": "x",
        "NCBI_API_KEY": "of the shell",
    }


def test_a_named_variable_may_stand_in_dotenv_but_must_be_somewhere(tmp_path: Path) -> None:
    write(tmp_path, "ONLY_HERE=1\n")
    environment = worker_environment(tmp_path, shell={}, names=("ONLY_HERE",))
    assert environment == {**SAME_FOR_ALL, "ONLY_HERE": "1"}
    with pytest.raises(ConfigError) as caught:
        worker_environment(tmp_path, shell=SHELL, names=("NOWHERE",))
    assert str(caught.value) == (
        "config.yml: tools.env names NOWHERE, which is set neither in this shell nor in .env; "
        "set it or take the name out"
    )
