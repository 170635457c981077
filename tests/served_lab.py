"""An engine on fake servers that run as processes: what is done to them, and what it says."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from processes import until
from vllm_fake_process import fake_python, requests_of

from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.deaths import Deaths
from rnow.engines.vllm.served import ServedEngine
from rnow.engines.vllm.starting import Starter, start_here


class Lab:
    """An engine on fake servers, and what happened to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = fake_python(folder)
        self.said: list[str] = []
        self.deaths = Deaths()
        self.engines: list[ServedEngine] = []

    async def start(
        self,
        num_servers: int = 1,
        *,
        starter: Starter = start_here,
        nodes: Sequence[str | None] = (None,),
        **settings: Any,
    ) -> ServedEngine:
        servers = tuple(
            VllmServerSettings(
                role="student",
                model=self.folder,
                log_file=self.folder / f"student-{number}.log",
                max_model_len=100,
                python=self.python,
                dtype="auto",
                deterministic=False,
                start_timeout_s=20.0,
                node=nodes[number % len(nodes)],
            )
            for number in range(num_servers)
        )
        spec = self.spec(*servers, **settings)
        engine = await ServedEngine.start(
            spec, deaths=self.deaths, say=self.said.append, start=starter
        )
        self.engines.append(engine)
        return engine

    def spec(self, *servers: VllmServerSettings, **settings: Any) -> EngineSpec:
        chosen = {"role": "student", "request_timeout_s": 10.0, "tolerance": 1e-3, **settings}
        return EngineSpec(
            model=self.folder,
            dtype="float32",
            device="cpu",
            servers=servers,
            **chosen,
        )

    def set(self, fault: str, text: str = "") -> None:
        (self.folder / fault).write_text(text)

    def unset(self, fault: str) -> None:
        (self.folder / fault).unlink()

    def pids(self) -> list[int]:
        """The processes of the servers, the newest last."""
        listing = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, text=True, check=True
        )
        return [
            int(line.split()[0])
            for line in listing.stdout.splitlines()
            if f"vllm_fake_process.py {self.folder} " in line and "/bin/sh" not in line
        ]

    def command_line(self) -> list[str]:
        """The words of the newest server's command."""
        command = Path(f"/proc/{self.pids()[-1]}/cmdline").read_text()
        return command.split("\0")

    async def killed(self, work: Awaitable[Any]) -> Any:
        """Return what `work` gives although its server is killed while it waits for an answer."""
        num = len(requests_of(self.folder))
        self.set("hangs")
        task = asyncio.ensure_future(work)
        await until(lambda: len(requests_of(self.folder)) > num)
        self.unset("hangs")  # for the next server
        os.kill(self.pids()[-1], signal.SIGKILL)
        return await task
