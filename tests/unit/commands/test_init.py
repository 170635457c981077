import re
from pathlib import Path

import pytest
from builders import read_prompts

import rnow
from rnow.commands.init import TEMPLATES, init_project
from rnow.config.load import load_config
from rnow.errors import UsageError

PACKAGED = Path(rnow.__file__).parent / "templates"


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of change of every file."""
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_medbrowsecomp_is_copied_byte_for_byte(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "project"
    created = init_project(folder, template="medbrowsecomp")
    names = ["config.yml", "convert_dataset.py", "rewards.py", "tools.py", "train.jsonl"]
    assert created == tuple(folder / name for name in names)
    assert sorted(snapshot(folder)) == names
    for name in names:
        assert (folder / name).read_bytes() == (PACKAGED / "medbrowsecomp" / name).read_bytes()


def test_clinic_brings_its_site_and_loads_as_a_project(tmp_path: Path) -> None:
    created = init_project(tmp_path, template="clinic")
    assert sorted(created) == sorted(tmp_path / name for name in snapshot(tmp_path))
    assert len(list((tmp_path / "site/study").iterdir())) > 100
    assert not list(tmp_path.rglob("__pycache__"))
    config = load_config(tmp_path).config
    assert config.browser.local_sites == {"clinic.test": "site/"}
    assert read_prompts(tmp_path / "train.jsonl", tool_names=["browse"]).prompts
    assert read_prompts(tmp_path / "val.jsonl", tool_names=["browse"]).prompts


def test_the_seed_decides_over_the_generated_pages(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        init_project(tmp_path / name, template="clinic", seed=seed)
    train = {name: (tmp_path / name / "train.jsonl").read_bytes() for name in "abc"}
    assert train["a"] == train["b"] != train["c"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_existing_files_are_left_as_they_are_and_named(tmp_path: Path, template: str) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    (tmp_path / "other.py").write_text("# not in the template")
    (tmp_path / "notes").mkdir()
    before = snapshot(tmp_path)
    notices: list[str] = []
    created = init_project(tmp_path, template=template, on_notice=notices.append)
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {tmp_path / name for name in after if name not in before} == set(created)
    assert notices == [f"there already, left as it was: {tmp_path}/train.jsonl"]


def test_a_second_time_makes_nothing(tmp_path: Path) -> None:
    init_project(tmp_path, template="medbrowsecomp")
    before = snapshot(tmp_path)
    notices: list[str] = []
    assert init_project(tmp_path, template="medbrowsecomp", on_notice=notices.append) == ()
    assert snapshot(tmp_path) == before
    assert notices == [
        f"there already, left as it was: {tmp_path}/config.yml, {tmp_path}/convert_dataset.py, "
        f"{tmp_path}/rewards.py, {tmp_path}/tools.py, {tmp_path}/train.jsonl"
    ]


def test_many_files_that_were_there_are_counted(tmp_path: Path) -> None:
    num_files = len(init_project(tmp_path, template="clinic"))
    notices: list[str] = []
    init_project(tmp_path, template="clinic", on_notice=notices.append)
    assert re.search(rf" and {num_files - 5} more$", notices[0])


def test_a_dangling_link_is_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "tools.py").symlink_to(tmp_path / "elsewhere" / "tools.py")
    notices: list[str] = []
    created = init_project(tmp_path, template="medbrowsecomp", on_notice=notices.append)
    assert tmp_path / "tools.py" not in created
    assert notices == [f"there already, left as it was: {tmp_path}/tools.py"]


def test_a_file_where_a_folder_must_be_stops_before_the_first_copy(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("")
    with pytest.raises(UsageError) as caught:
        init_project(tmp_path, template="clinic")
    assert str(caught.value) == f"{tmp_path}/site is a file, and the template needs a folder there"
    assert sorted(snapshot(tmp_path)) == ["site"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("clinics", "there is no template clinics; did you mean clinic?"),
        ("medbrowse", "there is no template medbrowse; did you mean medbrowsecomp?"),
        ("kernel", "there is no template kernel; there are clinic and medbrowsecomp"),
    ],
)
def test_an_unknown_template_is_a_usage_error(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        init_project(tmp_path / "x", template=template)
    assert str(caught.value) == message
    assert not (tmp_path / "x").exists()
