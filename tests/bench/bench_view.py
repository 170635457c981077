"""What the live view costs a run: at most 2 % of a step, wherever it has a processor to itself.

python tests/bench/bench_view.py

The view with a long history and eight GPUs is drawn on a terminal of 200 columns. The share is the
processor's time for one drawing, by the time between two.
"""

import os
import pty
import sys
import threading
import time
from contextlib import suppress

from rich.console import Console
from rows import row

from rnow.runtime.console import DRAW_EVERY_S, make_live
from rnow.training.view import view

NUM_DRAWN = 200
MAX_SHARE = 0.02
HISTORY = [{"step": step, "reverse_kl": 1 / (1 + step), "time/step": 10.0} for step in range(2000)]
GPUS = [
    {"index": number, "used_mib": 72_909, "total_mib": 81_559, "use_percent": 98}
    for number in range(8)
]
STATUS = {
    "step": 3,
    "num_steps": 20,
    "stage": "rollout",
    "stage_s": 75.2,
    "done": 57,
    "total": 64,
    "eta_s": 170.0,
    "rollouts": {
        "running": 5,
        "done": 59,
        "failed": 2,
        "turns": 131,
        "calls": {"ok": 100, "timeout": 3, "model_error": 12},
        "student_tokens_per_s": 1234.5,
        "teacher_tokens_per_s": 45678.0,
        "answer": "The company is Acme. " * 20,
    },
    "trainer_tokens_per_s": 2200.0,
    "gpus": GPUS,
    "keys": "q: save and stop",
}


def drain(file: int) -> None:
    with suppress(OSError):  # when the other end is closed
        while os.read(file, 65536):
            pass


def main() -> int:
    master, slave = pty.openpty()
    threading.Thread(target=drain, args=(master,), daemon=True).start()
    console = Console(file=os.fdopen(slave, "w"), width=200, height=50, markup=False)
    live = make_live(console, lambda: view(STATUS, HISTORY, [], width=console.width))
    with live:
        started = time.process_time()
        for _ in range(NUM_DRAWN):
            live.refresh()
        one_s = (time.process_time() - started) / NUM_DRAWN
    beside = f"drawn in {1000 * one_s:.2f} ms every {DRAW_EVERY_S:g} s"
    return int(
        not row("the view", one_s / DRAW_EVERY_S, "of a step", most=MAX_SHARE, beside=beside)
    )


if __name__ == "__main__":
    sys.exit(main())
