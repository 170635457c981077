"""A delivery that is cut leaves nothing behind on the machine."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from rnow.cluster import keeper


async def test_a_delivery_that_is_cut_is_forgotten_with_its_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = keeper._write

    def wait_and_write(*given: object) -> None:
        begun.set()
        go_on.wait(60)
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(keeper, "_write", wait_and_write)
    there = keeper.Keeper.__new__(keeper.Keeper)
    there._folder = tmp_path
    receiving = asyncio.create_task(there.receive("policy", ["a"], np.ones(9, np.uint8)))
    await asyncio.to_thread(begun.wait, 60)
    receiving.cancel()
    await asyncio.sleep(0.05)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    await there.forget("policy")
    assert list(tmp_path.iterdir()) == []
