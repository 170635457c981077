import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from builders import page_text
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import PATIENCE_S

from rnow.browser.text.markdown import html_to_markdown, visible_text
from rnow.browser.text.pagination import paginate, show_page

URL = "https://clinic.test/study/NCT1"
STUDY = """<!doctype html>
<html><head><title>NCT1 | Clinic</title><style>p {margin: 0}</style></head>
<body>
<nav><a href="/">Home</a> <a href="/search">Search</a></nav>
<h1>Study NCT1</h1>
<p>A <b>phase 3</b> study of <a href="/drug/Oncavex">Oncavex</a> in <i>adults</i>.</p>
<table>
<tr><th>Field</th><th>Value</th></tr>
<tr><td>Sponsor</td><td>Novel Pharma Inc</td></tr>
<tr><td>Sites</td><td><p>Basel</p><p>Bonn<br>Ulm</p></td></tr>
</table>
<h2>Outcome</h2>
<ul><li>Overall survival</li><li>Safety</li></ul>
<p>See also <a href="https://other.test/a">the registry</a>.</p>
<footer>Clinic, 2026</footer>
</body></html>"""


class Words:
    """A limiter whose tokens are words and line breaks."""

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens
        self.num_chars_counted = 0

    def count(self, text: str) -> int:
        self.num_chars_counted += len(text)
        return len(text.split()) + text.count("\n")


def test_a_page_is_a_header_line_and_markdown() -> None:
    assert page_text(STUDY, url=URL) == (
        "https://clinic.test/study/NCT1 (status 200, page 1 of 1)\n"
        "\n"
        "# Study NCT1\n"
        "A phase 3 study of [Oncavex](/drug/Oncavex) in adults.\n"
        "| Field | Value |\n"
        "| --- | --- |\n"
        "| Sponsor | Novel Pharma Inc |\n"
        "| Sites | Basel Bonn Ulm |\n"
        "## Outcome\n"
        "  * Overall survival\n"
        "  * Safety\n"
        "\n"
        "See also [the registry](https://other.test/a)."
    )


def test_a_long_page_is_cut_at_line_breaks_and_says_how_to_go_on() -> None:
    html = "<p>one two three</p><p>four five</p><p>six</p><p>seven eight nine ten</p>"
    # 7 for the header, 3 for line breaks around the text, 3 for the last line: 7 are left.
    limiter = Words(20)
    assert [page_text(html, url=URL, page=page, limiter=limiter) for page in (1, 2)] == [
        f"{URL} (status 200, page 1 of 2)\n"
        "\n"
        "one two three\n"
        "four five\n"
        "[Continues: browse(url, page=2)]",
        f"{URL} (status 200, page 2 of 2)\n\nsix\nseven eight nine ten",
    ]


@given(
    st.lists(st.text("ab \n", max_size=60), max_size=30).map("\n".join),
    st.integers(min_value=25, max_value=60),
)
@settings(deadline=None)
def test_pages_fit_the_limiter_and_hold_every_word_in_order(text: str, max_tokens: int) -> None:
    limiter = Words(max_tokens)
    document = paginate(text, url=URL, status=200, limiter=limiter)
    shown = [show_page(document, page + 1) for page in range(len(document.pages))]
    assert all(limiter.count(page) <= max_tokens for page in shown)
    # Without the spaces: a line that is too long and has none is divided within a word.
    words = "".join("".join(document.pages).split())
    assert words == ("".join(text.split()) or "(notextonthispage)")


def test_tokens_are_counted_in_linear_time() -> None:
    text = "\n".join(f"line {i} of a long page" for i in range(5_000))
    limiter = Words(200)
    paginate(text, url=URL, status=200, limiter=limiter)
    assert limiter.num_chars_counted < 5 * len(text)


def test_pages_fit_also_where_lines_are_more_tokens_together_than_apart() -> None:
    class DearBreaks(Words):
        def count(self, text: str) -> int:
            return len(text.split()) + 3 * text.strip("\n").count("\n")

    limiter = DearBreaks(40)
    document = paginate("\n".join("abcdefgh"), url=URL, status=200, limiter=limiter)
    shown = [show_page(document, page + 1) for page in range(len(document.pages))]
    assert "".join(document.pages).replace("\n", "") == "abcdefgh"
    assert all(limiter.count(page) <= 40 for page in shown)


def test_without_a_cap_on_tokens_there_is_one_page() -> None:
    text = "\n".join(str(i) for i in range(10_000))
    for limiter in (None, Words(None)):
        assert paginate(text, url=URL, status=200, limiter=limiter).pages == (text,)


def test_a_document_beyond_the_cap_says_that_it_was_cut() -> None:
    pages = paginate("word " * 99 + "\n" + "x\n" * 900_000, url=URL, status=200).pages
    assert len(pages) == 1
    assert len(pages[0].encode()) < 1_000_000
    assert pages[0].endswith("\nx\n[The document is longer; the rest was left out.]")


def test_a_url_that_is_long_is_shortened_in_the_header() -> None:
    url = "https://a.test/" + "x" * 500
    assert page_text("", url=url).split("\n") == [
        f"{url[:200]}… (status 200, page 1 of 1)",
        "",
        "(no text on this page)",
    ]


@pytest.mark.parametrize(
    "hidden",
    [
        "<script>secret()</script>",
        "<style>secret {}</style>",
        "<!-- secret -->",
        "<template>secret</template>",
        "<p hidden>secret</p>",
        "<p aria-hidden=true>secret</p>",
        "<div style='color: red; DISPLAY : none'><p>secret</p></div>",
        "<span style='visibility:hidden !important'>secret</span>",
        "<span style='font-size:0px'>secret</span>",
        "<span style='opacity: 0'>secret</span>",
        "<nav>secret</nav>",
        "<div role=navigation>secret</div>",
        "<footer>secret</footer>",
        "<select><option>secret</option></select>",
        "<img alt=secret src=secret.png>",
        "<iframe src=secret>secret</iframe>",
        "<svg><text>secret</text></svg>",
        "<math><annotation>secret</annotation></math>",
        "<a title=secret>",
        "<?xml secret?>",
    ],
)
def test_what_a_reader_does_not_see_is_left_out(hidden: str) -> None:
    html = f"<p>before {hidden} after</p><p>end</p>"
    text = html_to_markdown(html, url=URL)
    assert "secret" not in text
    assert text.split() == ["before", "after", "end"]


def test_what_stands_there_for_want_of_scripts_is_read_where_none_ran() -> None:
    html = "<p>before <noscript>the <b>table</b></noscript> after</p>"
    assert html_to_markdown(html, url=URL) == "before the table after"
    assert html_to_markdown(html, url=URL, has_run_scripts=True) == "before after"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("50 x 10<sup>9</sup>/L", "50 x 10^9/L"),
        ("1.5 m<sup>2</sup>; 2<sup>10</sup> = 1024", "1.5 m^2; 2^10 = 1024"),
        ("10<sup>-5</sup>, 10<sup>\u22125</sup>", "10^-5, 10^\u22125"),
        ("10<sup>5&nbsp;000</sup>", "10^(5 000)"),
        ("10 <sup> 5</sup> m", "10 ^5 m"),
        ("10<sup><b>5</b></sup>", "10^5"),
        ("e<sup>x+1</sup>, e<sup>x<sup>2</sup></sup>", "e^(x+1), e^(x^2)"),
        ("H<sub>2</sub>O, SO<sub>4</sub><sup>2-</sup>", "H_2O, SO_4^(2-)"),
        ("1<sup>st</sup> 2<sup>ND</sup> Brand<sup>®</sup>", "1st 2ND Brand®"),
        ("note<sup>3</sup>, notes<sup>[4]</sup> and<sup></sup>", "note^3, notes[4] and"),
        ("note<sup><a href='/n'>3</a></sup>", "note^[3](/n)"),
        ("1<sup>1</sup>&frasl;<sub>2</sub>; <sup>3</sup>/<sub>4</sub>", "1 1/2; 3/4"),
        ("was <del>$105</del><ins>$99</ins>", "was ~~$105~~$99"),
        ("<s>5</s>6 <strike>7 or</strike> 8<s></s>", "~~5~~6 ~~7 or~~ 8"),
        ("<math><msup><mn>10</mn><mn>5</mn></msup></math>", "10^5"),
        ("<math><msub><mi>t</mi><mrow><mn>1</mn>/<mn>2</mn></mrow></msub></math>", "t_(1/2)"),
        ("<math><msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup></math>", "x_1^2"),
        ("<math><mfrac><mrow>a+b</mrow><mn>2</mn></mfrac></math>", "(a+b)/2"),
        ("<math><msqrt><mn>2</mn></msqrt></math>", "√2"),
        ("<table><tr><td>10<sup>5</sup></td></tr></table>", "| 10^5 |\n| --- |"),
    ],
)
def test_raised_lowered_and_struck_text_leaves_numbers_as_they_are(html: str, text: str) -> None:
    assert html_to_markdown(f"<p>{html}</p>", url=URL) == text


@pytest.mark.parametrize(
    "tag", ["embed", "source", "track", "wbr", "img", "input", "link", "meta", "area", "param"]
)
def test_an_element_without_an_end_hides_nothing_of_what_follows(tag: str) -> None:
    assert html_to_markdown(f"<div>a <{tag}> b</div><p>c", url=URL).split() == ["a", "b", "c"]


def test_a_style_that_only_looks_like_hiding_hides_nothing() -> None:
    html = "<p style='opacity:0.5'>a</p><p style='font-size:0.8em'>b</p><p style='x-display:none'>c"
    assert html_to_markdown(html, url=URL) == "a\nb\nc"


def test_a_page_that_is_all_navigation_is_read_whole() -> None:
    html = "<nav><a href='/study/NCT1'>First</a><a href='/study/NCT2'>Second</a></nav>"
    assert html_to_markdown(html, url="https://clinic.test/") == (
        "[First](/study/NCT1)[Second](/study/NCT2)"
    )


@pytest.mark.parametrize(
    ("href", "shown"),
    [
        ("/drug/A", "[x](/drug/A)"),
        ("NCT2?tab=1#part", "[x](/study/NCT2?tab=1)"),
        ("https://clinic.test", "[x](/)"),
        ("//other.test/b", "[x](https://other.test/b)"),
        ("http://clinic.test:8080/", "[x](http://clinic.test:8080/)"),
        ("/a b(c)", "[x](/a%20b%28c%29)"),
        ("#part", "x"),
        ("", "x"),
        ("/study/NCT1#part", "x"),
        ("javascript:alert(1)", "x"),
        ("mailto:a@b.test", "x"),
        ("data:text/html,y", "x"),
        ("http://[", "x"),
        ("/" + "y" * 300, "x"),
    ],
)
def test_a_link_is_short_or_only_its_text(href: str, shown: str) -> None:
    assert html_to_markdown(f"<p><a href='{href}' title=t>x</a></p>", url=URL) == shown


def test_links_are_joined_to_the_pages_base() -> None:
    html = "<head><base href='/drug/'></head><a href='A'>x</a>"
    assert html_to_markdown(html, url=URL) == "[x](/drug/A)"


def test_invisible_characters_are_removed() -> None:
    invisible = "\u200b\u200d\u202e\u2066\ufeff\u00ad\u2060\x00\x1b\x9f\U000e0041\ufe0f\u061c"
    assert (
        visible_text(f"a{invisible}b\u00a0c\u2003d \r\ne\u2028f\n\n\n\ng ") == "ab c d\ne\nf\n\ng"
    )
    html = f"<p>On{invisible}cavex&#8203;&#x202E;!</p>"
    assert html_to_markdown(html, url=URL) == "Oncavex!"


def test_control_tokens_and_markup_in_a_page_are_text() -> None:
    html = "<p>&lt;|im_end|&gt; <|im_start|>user &lt;tool_call&gt;{}&lt;/tool_call&gt;</p>"
    assert (
        html_to_markdown(html, url=URL) == "<|im_end|> <|im_start|>user <tool_call>{}</tool_call>"
    )


def test_a_table_that_lays_a_page_out_is_dissolved() -> None:
    html = (
        "<table><tr><td><h1>Title</h1></td><td>"
        "<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>"
        "</td></tr></table>"
    )
    assert html_to_markdown(html, url=URL) == "# Title\n| A | B |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize(
    "html",
    ["", "   ", "<html></html>", "<!-- -->", "<?xml version='1.0' encoding='utf-8'?>", "\x00"],
)
def test_a_page_without_text_says_so(html: str) -> None:
    assert page_text(html, url=URL).endswith("\n\n(no text on this page)")


def test_a_page_that_declares_an_encoding_in_its_text_is_read() -> None:
    html = "<?xml version='1.0' encoding='iso-8859-1'?><html><body><p>Zürich</p></body></html>"
    assert html_to_markdown(html, url=URL) == "Zürich"


def work_of(html: str) -> int:
    """Return how much is done to convert `html`: calls and lines of Python, steps of lxml.

    Counted, not timed: it is the same number on each machine and beside any neighbour.
    """
    num_steps = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal num_steps
        num_steps += 1
        # lxml walks over all siblings here, and copies the text that the element's own is put to.
        if event == "call" and frame.f_code.co_name in ("drop_tag", "drop_tree"):
            element = frame.f_locals["self"]
            parent, previous = element.getparent(), element.getprevious()
            joined = parent.text if previous is None else previous.tail
            num_steps += len(parent) + len(joined or "")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        html_to_markdown(html, url=URL)
    finally:
        sys.settrace(before)
    return num_steps


@pytest.mark.parametrize(
    ("piece", "end"),
    [
        ("<div>", "</div>"),
        ("<a href='/x'>x", ""),
        ("<table><tr><td>", "</table>"),
        ("<ul><li>", "</ul>"),
        ("<p hidden>x", ""),
        ("<b hidden></b>x", ""),
        ("<b>", "</b>"),
        ("<td><p>x", ""),
        ("&", ""),
    ],
)
def test_malformed_html_costs_work_in_proportion_to_its_length(piece: str, end: str) -> None:
    # lxml drops what is nested deeper than 255 elements: beyond, nothing would be converted.
    nest = f"{piece * 50}x{end * 50}"
    html_to_markdown(nest, url=URL)  # loads crawl4ai
    # Four times as much takes four times as much work, not sixteen.
    assert work_of(nest * 16 + "end") < 4.2 * work_of(nest * 4 + "end")


@given(st.text("<>/=&;'\" \n!-abp", max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_html_raises(html: str) -> None:
    page_text(html, url=URL)


def test_crawl4ai_neither_touches_the_home_directory_nor_reads_env_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / ".env").write_text("SECRET=1")
    code = (
        "import os; before = set(os.environ)\n"
        "from rnow.browser.text.markdown import html_to_markdown as convert\n"
        "import sys; assert 'crawl4ai' not in sys.modules\n"
        "print(convert('<h1>A', url='https://a.test/'), sorted(set(os.environ) - before))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CRAWL4")}
    environment |= {"HOME": str(home), "TMPDIR": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == (
        "# A ['CRAWL4AI_NO_CLOUD_NOTICE', 'CRAWL4_AI_BASE_DIRECTORY']\n",
        "",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", "home"]
    assert list(home.iterdir()) == []
