import pytest

from rnow.wiring import dtype_tolerance


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
    assert dtype_tolerance(*dtypes, device=device) == nats
