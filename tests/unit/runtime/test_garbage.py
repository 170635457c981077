import gc

import pytest

from rnow.runtime.garbage import rare_collections


def test_collections_are_rare_inside_and_as_before_outside() -> None:
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_freeze_count() > 0
        num_young = gc.get_stats()[0]["collections"]
        kept: list[list[int]] = [[] for _ in range(10 * before[0])]
        assert gc.get_stats()[0]["collections"] == num_young
    assert len(kept) == 10 * before[0]
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_an_error_inside_leaves_the_collector_as_before() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), rare_collections():
        _ = 1 / 0
    assert gc.get_threshold() == before
