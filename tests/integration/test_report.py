"""The page of `rnow report` in a real Chromium: of a real run, of a hostile one, of a large one."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from builders import make_trajectory
from chromium import chromium_executable
from playwright.sync_api import Browser, Page, sync_playwright
from short_runs import rnow
from tokenizers import Tokenizer

from rnow.commands.init import init_project
from rnow.commands.report import make_server
from rnow.records import (
    ScoredTrajectory,
    StopReason,
    ToolCallRecord,
    ToolOutcome,
    Turn,
)
from rnow.runs.beside import write_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import scored_to_json, trajectory_to_json

pytestmark = pytest.mark.slow

SHORT = ("data.batch_size=4", "data.group_size=2", "trainer.max_steps=1", "trainer.eval_step=1")
MAX_MB = 15
CONTRAST = Path(__file__).parents[1] / "fixtures" / "contrast.js"
TOKENS = ".tokens[data-part] span"
FILTERS = "run of order entry turns wrong failed unanswered favourites"
HOSTILE = (
    "</script><script>window.hit = 1</script></pre><img src=x onerror='window.hit = 2'>"
    '<a href="javascript:window.hit=3">a</a> [b](javascript:window.hit=4) {{ 7 * 7 }} &lt;b&gt; '
    "\u202eevil\u202c \x1b[2J \x00 \u2028 <!-- ]]> `${window.hit = 5}` "
)
SHOWN = "⟨U+202E⟩evil⟨U+202C⟩ ⟨U+001B⟩[2J ⟨U+0000⟩ ⟨U+2028⟩ <!-- ]]> `${window.hit = 5}`"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    held_out = (folder / "val.jsonl").read_text().splitlines(keepends=True)
    (folder / "val.jsonl").write_text("".join(held_out[:4]))
    rnow("run", folder, "--name", "first", *SHORT)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_executable())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that has asked for nothing but its file, and complained of nothing, in the end."""
    opened = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) >= 1
    opened.close()


def make_page(*runs: Path, output: Path) -> str:
    said = rnow("report", *runs, "--output", output).stdout
    assert said == f"{output}: {output.stat().st_size / 1e6:.1f} MB, opens without a network\n"
    return output.as_uri()


def draw(page: Page, number: int) -> None:
    """Bring a chart into view, where it is drawn."""
    page.locator(f"#chart-{number}").scroll_into_view_if_needed()
    page.locator(f"#chart-{number} .main-svg").first.wait_for()


def open_first(page: Page) -> None:
    page.locator("#list a").first.click()
    wait_for_first(page)


def wait_for_first(page: Page) -> None:
    """Until the list's first transcript is the shown one: a page hears of its new hash later."""
    link = page.locator("#list a").first.get_attribute("href") or ""
    page.locator(f"#transcript h3 a[href={json.dumps(link)}]").wait_for()


def count(page: Page) -> str:
    return page.locator("#count").inner_text()


def test_the_demos_report_is_filtered_and_read_with_a_mouse(
    project: Path, page: Page, tmp_path: Path
) -> None:
    page.goto(make_page(project / "runs" / "first", output=tmp_path / "report.html"))
    draw(page, 0)
    draw(page, 1)
    page.locator("#chart-0 .errorbar").first.wait_for(state="attached")
    page.locator("#chart-1 .errorbar").first.wait_for(state="attached")  # the held-out interval
    assert page.locator("[data-diagnosis]").count() == 0
    # 8 rollouts of the step, and 4 held-out answers before and after it.
    assert count(page) == "16 of 16 transcripts"
    page.locator("select[name=of]").select_option("held-out")
    assert count(page) == "8 of 16 transcripts"
    page.locator("select[name=of]").select_option("training")
    assert count(page) == "8 of 16 transcripts"
    shown = page.evaluate("data.transcripts.filter((one) => one.held_out === null)")
    checks = {
        "wrong answer": sum(one["right"] is False for one in shown),
        "a tool failed": sum(one["failed"] for one in shown),
        "no answer": sum(one["end"] != "answer" for one in shown),
        "teacher's favourites known": 4,
    }
    assert checks["wrong answer"] > 0
    for label, expected in checks.items():
        page.get_by_label(label).check()
        assert count(page) == f"{expected} of 16 transcripts", label
        page.get_by_label(label).uncheck()
    entry = shown[0]["entry"]
    page.get_by_label("entry (from 0)").fill(str(entry))
    assert count(page) == f"{sum(one['entry'] == entry for one in shown)} of 16 transcripts"
    page.get_by_label("entry (from 0)").fill("")
    page.get_by_label("at least so many turns").fill("99")
    assert count(page) == "0 of 16 transcripts"
    page.get_by_label("at least so many turns").fill("2")
    page.get_by_label("order").select_option("id")
    page.get_by_label("order").select_option("gap")
    gaps = [one["gap"] for one in shown if one["turns"] >= 2]
    first = page.locator("#list a").first
    assert f"gap {max(gaps):.3f}" in first.inner_text()

    page.get_by_label("teacher's favourites known").check()
    open_first(page)
    one = page.evaluate("data.transcripts.find((each) => link(each) === opened())")
    parts = [part for part in one["parts"] if "t" in part]
    tokens = [(part, i) for part in parts for i in range(len(part["t"]))]
    gaps = [part["p"][i] - part["q"][i] for part, i in tokens]
    worst = gaps.index(max(gaps))
    (part, i), token = tokens[worst], page.locator(TOKENS).nth(worst)
    token.hover()
    told = page.locator("#token").inner_text()
    assert token.get_attribute("data-gap") == f"{max(gaps):.3f}"
    for name, values in (("student, in the update", "p"), ("sampler", "s"), ("teacher", "q")):
        assert f"{name} {part[values][i]:.3f} (" in told
    assert len(part["f"][i]) == 3
    text, _ = part["f"][i][0]
    assert f"the teacher's favourites {json.dumps(text, ensure_ascii=False)} " in told


def test_a_held_out_answer_says_what_was_expected_and_what_no_one_kept(
    project: Path, page: Page, tmp_path: Path
) -> None:
    page.goto(make_page(project / "runs" / "first", output=tmp_path / "report.html"))
    page.locator("select[name=of]").select_option("held-out")
    page.get_by_label("wrong answer").check()
    open_first(page)
    one = page.evaluate("data.transcripts.find((each) => link(each) === opened())")
    assert f"expected: {one['expected']} · read from the answer:" in page.inner_text("#transcript")
    page.locator(".tokens[data-part] span").first.hover()
    told = page.locator("#token").inner_text()
    assert "gap not known: no teacher scored it" in told
    assert "teacher not scored" in told
    assert "the teacher's favourites not kept" in told
    assert page.locator("#transcript [data-gap]").count() == 0


def test_it_is_read_with_keys_alone(project: Path, page: Page, tmp_path: Path) -> None:
    page.goto(make_page(project / "runs" / "first", output=tmp_path / "report.html"))
    active = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{active}.textContent") == "To the transcripts"
    page.keyboard.press("Enter")
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        # What has the focus is seen to have it.
        assert page.evaluate(f"getComputedStyle({active}).outlineStyle") != "none"
        names.append(page.evaluate(f"{active}.name ?? {active}.dataset.id ?? ''"))
        if page.evaluate(f"{active}.closest('#list') !== null && {active}.tagName === 'A'"):
            break
    assert [name for name in names if name in FILTERS.split()] == FILTERS.split()
    page.keyboard.press("Enter")
    wait_for_first(page)
    assert page.evaluate(f"{active}.className") == "tokens"
    spans = page.locator(TOKENS).count()
    at = f"[...document.querySelectorAll('{TOKENS}')].findIndex((one) => one.matches('.at'))"
    places = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "n"):
        page.keyboard.press(key)
        places.append(page.evaluate(at))
    assert places[:5] == [0, 1, 0, spans - 1, 0]
    gap = page.locator(".tokens .at").get_attribute("data-gap")
    assert abs(float(gap or 0)) >= 1  # n went on to it, in whatever turn it is
    assert f"gap {gap} nats" in page.locator("#token").inner_text()
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(at) == spans - 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_the_light_and_in_the_dark(
    project: Path, page: Page, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(make_page(project / "runs" / "first", output=tmp_path / "report.html"))
    open_first(page)
    # The deepest colours, whatever this run's gaps are.
    page.evaluate(
        """(tokens) => document.querySelectorAll(tokens).forEach((one, i) => {
        one.style.background = `rgba(var(--${i % 2 ? "bad" : "good"}), 0.75)`; })""",
        TOKENS,
    )
    contrasts = page.evaluate(CONTRAST.read_text())
    assert len(contrasts) > 200
    assert [(text, round(value, 2)) for value, text in contrasts if value < 4.5] == []


def test_a_link_opens_its_transcript_and_dark_and_print_are_looked_after(
    project: Path, page: Page, tmp_path: Path
) -> None:
    address = make_page(project / "runs" / "first", output=tmp_path / "report.html")
    page.emulate_media(color_scheme="dark")
    page.goto(address)
    target = page.locator("#list a").nth(3)
    link, name = target.get_attribute("href") or "", target.get_attribute("data-id")
    page.goto("about:blank")
    page.goto(address + link)
    assert page.locator("#transcript h3").inner_text() == f"first/{name}"
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(21, 23, 26)"
    page.emulate_media(media="print", color_scheme="light")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert not page.locator("#filters").is_visible()
    assert page.locator("#transcript").is_visible()


def test_nothing_of_a_page_or_a_model_is_obeyed(project: Path, page: Page, tmp_path: Path) -> None:
    run = copied(project, "hostile", [hostile(project)])
    config = (run / "config.yml").read_text()
    (run / "config.yml").write_text(
        config.replace("models/teacher", "'<script>window.hit=6</script>'")
    )
    grade = {"right": False, "extracted": HOSTILE, "expected": HOSTILE}
    line = {**trajectory_to_json(hostile(project).trajectory), **grade}
    write_beside(RunDirectory(run).beside("eval", 3), [line])
    page.goto(make_page(run, output=tmp_path / "report.html"))
    page.locator("select[name=of]").select_option("held-out")
    open_first(page)
    assert page.inner_text("#transcript").count("<script>window.hit = 1</script></pre><img") == 6
    page.locator("select[name=of]").select_option("training")
    open_first(page)
    body = page.locator("#transcript").inner_text()
    assert (
        body.count("<script>window.hit = 1</script></pre><img src=x") == 4
    )  # prompt, turn, call, answer
    assert SHOWN in page.locator("#transcript pre").nth(2).inner_text().replace("\n", " ")
    assert "more characters" in body
    assert page.evaluate("window.hit") is None
    assert page.locator("img, iframe, #transcript script").count() == 0
    assert [a.get_attribute("href") for a in page.locator("#transcript a").all()] == [
        "#hostile%2F0.0.0"
    ]
    assert page.locator("script").count() == 4  # data, plotly as text and as a script, its own
    assert page.locator("a[href^='javascript']").count() == 0


def test_two_runs_stand_side_by_side(project: Path, page: Page, tmp_path: Path) -> None:
    other = copied(project, "other", [])
    config = (other / "config.yml").read_text()
    (other / "config.yml").write_text(config.replace("kl_penalty_coef: 1.0", "kl_penalty_coef: 0"))
    page.goto(make_page(project / "runs" / "first", other, output=tmp_path / "report.html"))
    draw(page, 0)
    page.locator("#chart-0 .legendtext").nth(1).wait_for()
    assert page.locator("#chart-0 .legendtext").all_text_contents() == ["first", "other"]
    settings = page.locator("table", has=page.get_by_text("algorithm.kl_penalty_coef"))
    assert settings.locator("tbody td").all_inner_texts() == ["1.0", "0"]
    assert page.locator("[data-diagnosis=no_signal]").count() == 1
    page.locator("select[name=run]").select_option(label="other")
    assert count(page) == "0 of 16 transcripts"


def test_ten_thousand_trajectories_are_a_sample_that_fits(
    project: Path, page: Page, tmp_path: Path
) -> None:
    run = copied(project, "large", [hostile(project)])
    line = json.loads((run / "trajectories" / "000000.jsonl").read_text())
    rest = json.dumps({key: line[key] for key in line if key not in ("step", "prompt")})[1:]
    for step in range(10):
        lines = [f'{{"step": {step}, "prompt": {prompt}, {rest}\n' for prompt in range(1000)]
        (run / "trajectories" / f"{step:06d}.jsonl").write_text("".join(lines))
    file = tmp_path / "report.html"
    page.goto(make_page(run, output=file))
    assert file.stat().st_size < MAX_MB * 1e6
    num = page.locator("#list a").count()
    # The worst gaps are those of the failed tools here, and some of those are drawn evenly too.
    assert 40 < num <= 80
    text = f"large: {num} of 10000 trajectories, read from 10 of 10 steps"
    assert text in page.inner_text("body")


def test_it_is_served_to_this_machine_alone_and_grows_with_the_run(project: Path) -> None:
    run = RunDirectory(copied(project, "served", []))
    with make_server([run]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            host, port = server.server_address[:2]
            assert host == "127.0.0.1"
            assert "1 of 1 steps" in get(f"http://127.0.0.1:{port}/")
            run.append_metrics({**run.read_metrics()[-1], "step": 1})
            assert "2 of 1 steps" in get(f"http://127.0.0.1:{port}/")
            assert status(f"http://127.0.0.1:{port}/config.yml") == 404
            assert status(f"http://127.0.0.1:{port}/", Host=f"evil.test:{port}") == 421
        finally:
            server.shutdown()
            thread.join()


def test_a_page_that_comes_anew_keeps_its_filters(project: Path, browser: Browser) -> None:
    with make_server([RunDirectory(project / "runs" / "first")]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            page.get_by_label("wrong answer").check()
            page.locator("select[name=of]").select_option("held-out")
            open_first(page)
            before = (count(page), page.inner_text("#transcript"))
            page.reload()
            assert (count(page), page.inner_text("#transcript")) == before
            assert page.get_by_label("wrong answer").is_checked()
            page.close()
        finally:
            server.shutdown()
            thread.join()


def test_what_is_no_run_is_said(project: Path, tmp_path: Path) -> None:
    done = rnow("report", tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == (f"Error: {tmp_path} is not a run's folder; to see them: rnow status\n")


def copied(project: Path, name: str, scored: list[ScoredTrajectory]) -> Path:
    """A copy of the real run with these trajectories in the place of its own."""
    run = project / "runs" / name
    leave = shutil.ignore_patterns("trajectories", "policies", "checkpoints", "model")
    shutil.copytree(project / "runs" / "first", run, ignore=leave)
    (run / "trajectories").mkdir()
    by_step: dict[int, list[str]] = {}
    for one in scored:
        line = json.dumps(scored_to_json(one))
        by_step.setdefault(one.trajectory.id.step, []).append(line)
    for step, lines in by_step.items():
        text = "\n".join(lines) + "\n"
        (run / "trajectories" / f"{step:06d}.jsonl").write_text(text, encoding="utf-8")
    return run


def hostile(project: Path) -> ScoredTrajectory:
    """A trajectory whose prompt, turn, call and answer hold what a browser or terminal obeys."""
    tokenizer = Tokenizer.from_file(str(project / "models" / "student" / "tokenizer.json"))
    ids = tokenizer.encode(HOSTILE).ids
    mask = np.array([False] * len(ids) + [True] * len(ids))
    call = ToolCallRecord(
        name="<b>browse</b>",
        arguments=json.dumps({"url": f"https://<script>.test/{HOSTILE}"}, ensure_ascii=False),
        outcome=ToolOutcome.ERROR,
        text=HOSTILE + "x" * 5_000,
        duration_s=0.1,
        truncated=False,
    )
    turn = Turn(
        start=len(ids),
        end=2 * len(ids),
        stop_reason=StopReason.LENGTH,
        tool_calls=(call,),
        duration_s=0.1,
    )
    trajectory = make_trajectory(
        [*ids, *ids],
        mask,
        turn_index=np.where(mask, 0, -1),
        sampler_logprobs=np.where(mask, -0.5, np.nan),
        turns=(turn,),
    )
    teacher = np.where(mask, -4.0, np.nan).astype(np.float32)
    return ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher)


def get(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
