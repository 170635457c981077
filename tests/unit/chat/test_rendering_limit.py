"""Templates that do not end, or write without end."""

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from builders import tokenizer_folder
from processes import PATIENCE_S

from rnow.chat.rendering_limit import memory_held, rendered
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


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to it")
TWENTY_GB = "20 * 1000 ** 3"


@linux
@pytest.mark.parametrize(
    "text",
    [
        f"{{{{ 'x' * ({TWENTY_GB}) }}}}",
        f"{{{{ 'x' | center({TWENTY_GB}) }}}}",
        "{{ '%20000000000d' % 1 }}",
        "{{ '{:20000000000d}'.format(1) }}",
        f"{{{{ 'x\ny' | indent({TWENTY_GB}) }}}}",
        f"{{{{ [0] * ({TWENTY_GB}) }}}}",
    ],
)
def test_a_template_that_asks_for_all_memory_is_refused(tmp_path: Path, text: str) -> None:
    folder = tokenizer_folder(tmp_path / "model", "qwen3", template=text)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(TemplateError) as caught:
        ChatTemplate.load(folder)
    assert str(caught.value) == (
        f"the chat template of {folder} was stopped: it asks for more memory than a template is "
        "given (2 GB)"
    )
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@linux
@pytest.mark.parametrize(
    "text",
    [
        "{{ ('x' * 10 ** 8) ~ ('x' * 10 ** 8) }}",
        "{% set ns = namespace(x='x') %}{% for _ in range(40) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for _ in range(40) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
        "{% set ns.x = ns.x + [range(99999) | list] %}{% endfor %}",
    ],
)
def test_a_template_that_gathers_memory_piece_by_piece_is_refused(
    tmp_path: Path, text: str
) -> None:
    tokenizer = template_of(text, tmp_path)
    refused = pytest.raises(TemplateError, match=r" it asks for more memory .* \(0\.0625 GB\)$")
    with refused, memory_held(2**26):
        rendered(lambda: tokenizer.apply_chat_template(ASKED, tokenize=False), name="m")


@linux
def test_a_limit_on_memory_that_is_there_already_stays(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    lower = 2**45  # more than this process has, less than no limit
    resource.setrlimit(resource.RLIMIT_AS, (lower, before[1]))
    try:
        with memory_held():
            within = rendered(lambda: str(resource.getrlimit(resource.RLIMIT_AS)[0]), name="m")
        outside = rendered(lambda: str(resource.getrlimit(resource.RLIMIT_AS)[0]), name="m")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert int(within) < int(outside) == lower


AFTERWARDS = """
import sys, time
from rnow.chat.rendering_limit import rendered
from rnow.errors import TemplateError

def for_ever():
    while True:
        pass

def deaf():  # what was sent to it is raised later, or never
    end = time.monotonic() + 0.3
    try:
        while time.monotonic() < end:
            pass
    except BaseException:
        time.sleep(0.1)
    return "text"

def late():
    time.sleep(0.3)  # in C: it comes when that is done
    return "text"

for work in (for_ever, deaf, late, for_ever):
    try:
        rendered(work, name="m", max_seconds=0.1)
    except TemplateError as error:
        assert "was stopped" in str(error)

def traced():
    return sum(number for number in range(3))

lines = 0
def count(frame, event, _):
    global lines
    lines += 1
    return count if lines < 1000 else None

sys.settrace(count)
traced()
sys.settrace(None)
print(lines < 100)
"""


def test_after_a_template_was_stopped_a_trace_comes_to_an_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
