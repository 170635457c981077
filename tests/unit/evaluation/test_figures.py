import pytest

from rnow.evaluation.figures import wilson_interval


def test_wilson_interval_is_the_published_formula() -> None:
    # p = 8/10, z = 1.96: centre (0.8 + 3.8416/20) / 1.38416 = 0.716739,
    # half 1.96/1.38416 · sqrt(0.016 + 0.009604) = 0.226577
    low, high = wilson_interval(8, 10)
    assert (round(low, 5), round(high, 5)) == (0.49016, 0.94332)
    assert wilson_interval(0, 30)[0] == 0.0
    assert wilson_interval(30, 30)[1] == 1.0


def test_wilson_interval_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match=r"^0 correct of 0 is not a share$"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match=r"^3 correct of 2 is not a share$"):
        wilson_interval(3, 2)
