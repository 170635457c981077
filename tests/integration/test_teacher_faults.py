"""Whole runs whose teacher goes wrong midway: each ends in words, and goes on once it is mended."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from short_runs import Done, ForkedCli
from vllm_fake_process import fake_python

from rnow.commands.init import init_project

pytestmark = pytest.mark.slow

NUM_STEPS = 6
LIMIT_S = 240


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    return folder


class Lab:
    """A student in this process, and a teacher's server that does as the files of `faults` say."""

    def __init__(
        self, rnow: ForkedCli, project: Path, *, name: str, faults: Path, lag: int
    ) -> None:
        self._rnow = rnow
        self.faults = faults
        self.run = project / "runs" / name
        self._words = (
            *("run", project, "--name", name, "data.batch_size=2", "data.group_size=2"),
            *(
                f"trainer.max_steps={NUM_STEPS}",
                "trainer.eval_step=0",
                f"trainer.max_policy_lag={lag}",
            ),
            *("engine.kind=local", "teacher.engine=vllm", f"engine.python={fake_python(faults)}"),
            "engine.start_timeout_s=60",
        )

    def run_until_it_goes_wrong(self, faults: dict[str, str], *, timeout_s: int) -> Done:
        """Run; from the first finished step on, the server has these faults."""
        with ThreadPoolExecutor() as pool:
            words = (*self._words, f"engine.request_timeout_s={timeout_s}")
            running = pool.submit(self._rnow, *words)
            end = time.monotonic() + LIMIT_S
            metrics = self.run / "metrics.jsonl"
            while not (metrics.exists() and metrics.read_text()):
                assert not running.done(), running.result().output
                assert time.monotonic() < end
                time.sleep(0.02)
            for name, text in faults.items():
                (self.faults / name).write_text(text)
            return running.result(timeout=LIMIT_S)

    def mend_and_go_on(self) -> None:
        for file in self.faults.iterdir():
            if file.name not in ("python", "requests"):
                file.unlink()
        resumed = self._rnow(*self._words)
        assert resumed.status == 0, resumed.output
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(NUM_STEPS))
        assert [line["rollout/trajectories"] for line in lines] == [4] * NUM_STEPS
        assert [line["teacher/dropped"] for line in lines] == [0] * NUM_STEPS


@pytest.mark.parametrize(
    ("faults", "timeout_s", "said", "lag"),
    [
        # The student in this process has as long: too little on a very busy machine would be shown.
        ({"slow": "7"}, 5, "has waited 5 s", 1),
        ({"dies": "", "broken": ""}, 60, "RuntimeError: this GPU has no memory left", 1),
        (
            {"stale": ""},
            60,
            "the teacher has changed since the run began: it now answers 1 nats",
            0,
        ),
        ({"nan": ""}, 60, "the teacher could not score ", 0),
    ],
    ids=["slow", "dead", "wrong", "nan"],
)
def test_a_teacher_that_goes_wrong_ends_the_run_in_words_and_mended_it_goes_on(
    rnow: ForkedCli,
    project: Path,
    tmp_path: Path,
    faults: dict[str, str],
    timeout_s: int,
    said: str,
    lag: int,
) -> None:
    lab = Lab(rnow, project, name="-".join(faults), faults=tmp_path, lag=lag)
    ended = lab.run_until_it_goes_wrong(faults, timeout_s=timeout_s)
    assert ended.status == 1, ended.output
    assert said in ended.output
    lab.mend_and_go_on()
