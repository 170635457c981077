import json
from pathlib import Path

from rnow.chat.compare import template_difference


def make_model(folder: Path, template: str | None, *, in_config: bool = False) -> Path:
    folder.mkdir()
    if in_config:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_the_first_line_that_differs_is_shown(tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", "{% a %}\n{{ b }}\nc\n")
    teacher = make_model(tmp_path / "teacher", "{% a %}\n{{ x }}\nc\n", in_config=True)
    assert template_difference(student, teacher) == (
        "the teacher's chat template is not the student's; the student's is used for both. "
        "Line 2 is '{{ b }}' in the student's, '{{ x }}' in the teacher's"
    )


def test_a_line_too_few_is_a_difference(tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", "a\nb")
    teacher = make_model(tmp_path / "teacher", "a")
    assert template_difference(student, teacher) == (
        "the teacher's chat template is not the student's; the student's is used for both. "
        "Line 2 is 'b' in the student's, missing in the teacher's"
    )


def test_the_same_template_in_file_and_config_is_no_difference(tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", "a\nb\n")
    teacher = make_model(tmp_path / "teacher", "a\nb", in_config=True)
    assert template_difference(student, teacher) is None


def test_a_teacher_without_a_template_is_not_compared(tmp_path: Path) -> None:
    student = make_model(tmp_path / "student", "a")
    assert template_difference(student, make_model(tmp_path / "teacher", None)) is None
