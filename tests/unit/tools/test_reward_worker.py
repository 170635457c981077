from fractions import Fraction

import numpy as np
import pytest

from rnow.tools.reward_worker import as_number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (Fraction(1, 4), 0.25),
        (float("nan"), None),
        (np.float32("inf"), None),
        (10**400, None),
        ("1.0", None),
        (None, None),
        (1j, None),
    ],
)
def test_a_reward_is_a_finite_number_of_whatever_type_or_none(
    value: object, number: float | None
) -> None:
    assert as_number(value) == number
