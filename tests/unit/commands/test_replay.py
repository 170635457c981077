from rnow.commands.replay import count_moves


def test_updates_between_batch_and_weights_are_counted_whichever_came_first() -> None:
    lines = [{"step": step, "trainer/skipped": float(step in (2, 5))} for step in range(8)]
    assert count_moves(lines, 2, 2) == 0
    assert count_moves(lines, 2, 3) == 0  # 2 was skipped
    assert count_moves(lines, 2, 6) == 2  # 3 and 4
    assert count_moves(lines, 6, 2) == 2  # a checkpoint from before the batch
    assert count_moves(lines, 5, 5) == 0
