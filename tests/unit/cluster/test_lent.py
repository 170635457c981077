"""Files that are lent to machines, of which one fails."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rnow.cluster.ranks import RanksOnNodes
from rnow.errors import EngineError


class Machine:
    """Stands for a node: writes down what is brought there and taken away."""

    def __init__(self, *, is_gone: bool) -> None:
        self._is_gone = is_gone
        self.is_receiving = False
        self.told: list[str] = []

    async def deliver(self, path: Path) -> str:
        if self._is_gone:
            raise EngineError("it is gone")
        self.is_receiving = True
        try:
            await asyncio.Event().wait()
        finally:
            self.is_receiving = False
        return "there"

    async def forget(self, path: Path) -> None:
        assert not self.is_receiving
        if self._is_gone:
            raise EngineError("it is gone")
        await asyncio.sleep(0.01)
        self.told.append("forget")


async def test_no_machine_receives_on_once_another_is_gone(tmp_path: Path) -> None:
    gone, there = Machine(is_gone=True), Machine(is_gone=False)
    one = SimpleNamespace(machine=SimpleNamespace(cores=1))
    cluster: Any = SimpleNamespace(nodes={"one": one})
    where = {"student": tmp_path, "run": tmp_path, "logs": tmp_path}
    ranks = RanksOnNodes(cluster, ["one"], program="none", **where)
    held: list[Any] = ranks._ranks
    held += [SimpleNamespace(node=node, paths={}) for node in (gone, there)]
    with pytest.raises(EngineError, match="it is gone"):
        async with ranks.carried({"type": "restore", "folder": str(tmp_path)}):
            pytest.fail("not all of them have it")
    assert not there.is_receiving
    assert there.told == ["forget"]
