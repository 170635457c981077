from typing import Any

import pytest

from rnow.config.settings import Config
from rnow.wiring import tolerance


def make_config(**engine: Any) -> Config:
    return Config.model_validate(
        {
            "data": {"batch_size": 1},
            "model": {"path": "student"},
            "teacher": {"path": "teacher"},
            "trainer": {"num_epochs": 1},
            "engine": engine,
        }
    )


@pytest.mark.parametrize(
    ("dtypes", "device", "nats"),
    [
        (("auto", "auto"), "cpu", 0.001),
        (("auto", "float32"), "cpu", 0.001),
        (("auto", "bfloat16"), "cpu", 0.05),  # the engine in float32, the trainer not
        (("bfloat16", "auto"), "cpu", 0.05),
        (("auto", "auto"), "cuda", 0.05),
        (("float32", "auto"), "cuda", 0.05),
        (("float32", "float32"), "cuda", 0.001),
    ],
)
def test_two_views_agree_as_far_as_the_coarser_of_them(
    dtypes: tuple[str, str], device: str, nats: float
) -> None:
    assert tolerance(make_config(), *dtypes, device=device) == nats


def test_a_tolerance_that_the_user_sets_is_taken() -> None:
    assert tolerance(make_config(probe_tolerance=0.2), "auto", "auto", device="cpu") == 0.2
