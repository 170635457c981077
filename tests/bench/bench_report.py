"""The page of a run of 10,000 trajectories: below 15 MB, and opened within 2 s in a Chromium.

python tests/bench/bench_report.py

Each trajectory has three turns of 100 sampled tokens and two tool results; two evaluations of 384
held-out answers stand beside them. Opened: the list of transcripts and the first chart are there.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright
from rows import row

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import make_trajectory, tokenizer_folder

from rnow.browser.chromium.executable import find_chromium
from rnow.records import StopReason, ToolCallRecord, ToolOutcome, Turn
from rnow.reports.page import make_report
from rnow.runs.beside import write_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import trajectory_to_json

NUM_STEPS, NUM_PROMPTS = 10, 1000
MAX_MB, MAX_OPEN_S, NUM_OPENED = 15, 2.0, 5


def make_line() -> dict[str, Any]:
    """A trajectory as a journal has it."""
    random = np.random.default_rng(0)
    blocks = [(0, 200), (1, 100), (0, 300), (1, 100), (0, 300), (1, 100)]
    mask = np.concatenate([np.full(length, is_action, dtype=bool) for is_action, length in blocks])
    turns = np.concatenate([np.full(length, at // 2) for at, (_, length) in enumerate(blocks)])
    turns[:200] = -1
    call = ToolCallRecord(
        name="browse",
        arguments=json.dumps({"url": "https://clinic.test/study/NCT1"}),
        outcome=ToolOutcome.OK,
        text="a line of a page\n" * 100,
        duration_s=0.2,
        truncated=False,
    )
    trajectory = make_trajectory(
        random.integers(0, 400, len(mask)),
        mask,
        turn_index=np.where(mask | (turns >= 0), turns, -1),
        sampler_logprobs=-random.random(len(mask)),
        turns=tuple(
            Turn(
                start=at,
                end=at + 100,
                stop_reason=StopReason.STOP,
                tool_calls=(call,),
                duration_s=1.0,
            )
            for at in (200, 600, 1000)
        ),
    )
    return {**trajectory_to_json(trajectory), "teacher_logprobs": (-random.random(300)).tolist()}


def make_run(project: Path) -> RunDirectory:
    tokenizer_folder(project / "student", "qwen3")
    run = RunDirectory(project / "runs" / "large")
    run.open()
    run.write_config({"model": {"path": "student"}, "teacher": {"path": "teacher"}})
    run.write_state(step=NUM_STEPS, num_steps=NUM_STEPS, finished=True)
    line = make_line()
    rest = json.dumps({key: line[key] for key in line if key not in ("step", "prompt")})[1:]
    logprobs = [round(one, 4) for one in line["sampler_logprobs"]]
    for step in range(NUM_STEPS):
        head = f'{{"step": {step}, "right": false'
        lines = [f'{head}, "prompt": {at}, {rest}\n' for at in range(NUM_PROMPTS)]
        run.trajectories(step).write_text("".join(lines))
        names = [{"prompt": at, "rollout": 0, "logprobs": logprobs} for at in range(NUM_PROMPTS)]
        write_beside(run.beside("update", step), names)
        top = {"ids": [[1, 2, 3]] * 300, "logprobs": [[-0.1, -2.0, -3.0]] * 300}
        write_beside(run.beside("favourites", step), [{**names[at], **top} for at in range(4)])
        ends = {"rollout/end_max_tokens": 0, "rollout/end_context_full": 0}
        run.append_metrics({"step": step, "reverse_kl": 1.0, "rollout/trajectories": 1000, **ends})
    grade = {"right": True, "extracted": "A", "expected": "A", "step": -1}
    held_out = [{**line, **grade, "prompt": prompt} for prompt in range(384)]
    for step in (0, NUM_STEPS):
        write_beside(run.beside("eval", step), held_out)
    run.close()
    return run


def open_s(file: Path) -> float:
    """Return the median time until the page can be read."""
    with sync_playwright() as playwright:
        executable = find_chromium(None, directory=file.parent)
        browser = playwright.chromium.launch(executable_path=executable)
        seconds = []
        for _ in range(NUM_OPENED):
            page = browser.new_page()
            started = time.perf_counter()
            page.goto(file.as_uri())
            page.locator("#list a").first.wait_for()
            page.locator("#chart-0 .main-svg").first.wait_for()
            seconds.append(time.perf_counter() - started)
            page.close()
        browser.close()
    return sorted(seconds)[NUM_OPENED // 2]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder))
        started = time.perf_counter()
        page = make_report([run])
        made_s = time.perf_counter() - started
        file = Path(folder) / "report.html"
        file.write_text(page, encoding="utf-8")
        size = file.stat().st_size / 1e6
        seconds = open_s(file)
    beside = f"made in {made_s:.0f} s"
    held = row("report of 10,000 trajectories", size, "MB", most=MAX_MB, beside=beside)
    return int(not (row("opened in", seconds, "s", most=MAX_OPEN_S) and held))


if __name__ == "__main__":
    sys.exit(main())
