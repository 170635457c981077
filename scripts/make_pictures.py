"""Make the pictures of docs/pictures: the page of `rnow report`, and the live view of `rnow run`.

    python scripts/make_pictures.py

A run of the demo's project is made, looked at in a Chromium, and drawn as it stood half-way. A run
that is there already: `--run my-project/runs/my-run`. Each picture stays below 300 kB.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from rnow.reports.page import make_report
from rnow.runs.folder import RunDirectory
from rnow.training.view import view

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
MAX_BYTES = 300_000
WIDTH, HEIGHT = 1180, 760


def make_run(folder: Path) -> RunDirectory:
    """Train the demo's project for some steps."""
    sys.path.insert(0, str(ROOT / "tests"))
    from short_runs import rnow

    rnow("init", folder, "--template", "clinic")
    rnow("run", folder, "--name", "demo", "trainer.max_steps=12", "trainer.eval_step=4")
    return RunDirectory(folder / "runs" / "demo")


def draw_report(run: RunDirectory) -> None:
    """Write parts of the page: curves, a transcript at a large gap, the same in the dark."""
    from rnow.browser.chromium.executable import find_chromium

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(make_report([run]), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=find_chromium(None, directory=ROOT))
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme
            )
            page.goto(file.as_uri())
            page.evaluate("draw_all()")
            if scheme == "light":
                _shoot(page, "report-curves", at="#charts")
                _open_worst(page)
                _shoot(page, "report-transcript", at="#transcript .at", above=560)
            else:
                _open_worst(page)
                _shoot(page, "report-dark", at="#filters")
        browser.close()


def _open_worst(page: Page) -> None:
    """Open a rollout of which the teacher's favourites are known, at its first large gap."""
    page.get_by_label("teacher's favourites known").check()
    page.locator("#list a").first.click()
    page.keyboard.press("n")


def _shoot(page: Page, name: str, *, at: str, above: int = 90) -> None:
    page.evaluate(
        """([at, above]) => {
            const { top } = document.querySelector(at).getBoundingClientRect();
            scrollBy(0, top - above);
        }""",
        [at, above],
    )
    page.wait_for_timeout(500)  # until what came into view is drawn
    _keep(f"{name}.png", page.screenshot())


def draw_view(run: RunDirectory) -> None:
    """Write the live view as it stood half-way through the run's steps."""
    lines = run.read_metrics()
    half = len(lines) // 2
    line = lines[half]
    rollouts = {
        "running": 7,
        "done": int(line["rollout/trajectories"]) - 7,
        "failed": 0,
        "turns": round(line["rollout/turns"] * (line["rollout/trajectories"] - 7)),
        "calls": {"ok": int(line["tool/ok"]), "model_error": int(line["tool/model_error"])},
        "student_tokens_per_s": line["tokens/action"] / line["time/rollout"],
        "teacher_tokens_per_s": line["tokens/total"] / line["time/rollout"],
        "answer": "COMPANY: RAMINE labs",
    }
    status: dict[str, Any] = {
        "step": half,
        "num_steps": len(lines),
        "stage": "rollout",
        "stage_s": line["time/rollout"],
        "done": rollouts["done"],
        "total": int(line["rollout/trajectories"]),
        "eta_s": sum(one["time/step"] for one in lines[half:]),
        "rollouts": rollouts,
        "trainer_tokens_per_s": line["tokens/total"] / line["time/update"],
        "keys": "q: save and stop",
    }
    evaluations = [one for one in run.read_evaluations() if one["step"] <= half]
    width = 88
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True)
        console.print(view(status, lines[:half], evaluations, width=width))
        svg = console.export_svg(title="rnow run clinic")
    # Fonts from elsewhere would be asked for; a terminal's own will do.
    without = [text for text in svg.splitlines() if "url(" not in text or "clip-path" in text]
    _keep("view.svg", "\n".join(without).encode())


def _keep(name: str, content: bytes) -> None:
    if len(content) > MAX_BYTES:
        sys.exit(f"{name} has {len(content)} bytes, more than {MAX_BYTES}")
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / name).write_bytes(content)
    print(f"{PICTURES / name}: {len(content) / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a run that is there already")
    given = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "clinic") if given is None else RunDirectory(given)
        draw_report(run)
        draw_view(run)


if __name__ == "__main__":
    main()
