"""Templates that do not end, or write without end."""

import threading
from pathlib import Path

import pytest
from builders import tokenizer_folder

from rnow.chat.rendering_limit import rendered
from rnow.chat.template import ChatTemplate
from rnow.errors import TemplateError

ASKED = [{"role": "user", "content": "x"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def template_of(text: str, folder: Path):  # type: ignore[no-untyped-def]  # transformers' own
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(folder, "qwen3", template=text))


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_template_that_does_not_end_is_stopped(tmp_path: Path, in_thread: bool) -> None:
    tokenizer = template_of(ENDLESS, tmp_path)
    said: list[str] = []

    def work() -> None:
        with pytest.raises(TemplateError) as caught:
            rendered(
                lambda: tokenizer.apply_chat_template(ASKED, tokenize=False),
                name="m",
                max_seconds=0.05,
            )
        said.append(str(caught.value))

    if in_thread:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    else:
        work()
    assert said == [
        "the chat template of m was stopped: it had not rendered these messages after 0.05 s"
    ]
    # Nothing of it is left for what this thread does next.
    assert rendered(lambda: "next", name="m") == "next"


def test_a_template_that_writes_too_much_is_refused(tmp_path: Path) -> None:
    tokenizer = template_of("{% for i in range(600) %}0123456789{% endfor %}", tmp_path)
    with pytest.raises(TemplateError) as caught:
        rendered(
            lambda: tokenizer.apply_chat_template(ASKED, tokenize=False), name="m", max_chars=5_000
        )
    assert str(caught.value) == (
        "the chat template of m makes 6000 characters of these messages; 5000 are allowed"
    )


@pytest.mark.parametrize("chance", ["{{ [1, 2] | random }}", "{{ lipsum(n=1) }}"])
def test_a_template_that_draws_by_chance_is_refused(tmp_path: Path, chance: str) -> None:
    folder = tokenizer_folder(tmp_path / "model", "qwen3", template=chance)
    with pytest.raises(TemplateError, match=r" draws by chance \((\| random|lipsum\()\), so that "):
        ChatTemplate.load(folder)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ range(10 ** 9) }}", "OverflowError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_a_template_reaches_nothing_outside_of_its_sandbox(
    tmp_path: Path, text: str, error: str
) -> None:
    folder = tokenizer_folder(tmp_path / "model", "qwen3", template=text)
    with pytest.raises(TemplateError, match=f"cannot render these messages: {error}: "):
        ChatTemplate.load(folder)
