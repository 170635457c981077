"""The server of vllm_fake.py as a process, started by the command line of a real vLLM server.

`fake_python(folder)` writes a program that stands in for an interpreter with vLLM. What the server
does wrong is told by files in that folder, which tests write while it runs:

    hangs       it accepts requests and never answers
    stuck       it never answers requests of the ids 9, 5 or of 0, and others as always
    status      the token route answers with this status, but for requests of one token
    broken      it ends before it listens
    fails-once  it ends before it listens, and takes this file away
    lacking     the token route answers 500 to the first request already, and the log says why
    slow        the token route answers after so many seconds, but for requests of one token
    dies        it ends itself at the next request of the token route
    stale       log-probabilities are 1 nat lower: other weights
    skips       log-probabilities of sampled tokens are 0.5 nats lower: an adapter left out
    nan         they are what the server says for NaN
    requests    (written by the server) one line a request: route, then the model that it names
    adapters    (written by the server) the folder of each adapter that it was told to load
"""

import asyncio
import json
import os
import signal
import stat
import sys
from itertools import pairwise
from pathlib import Path

from aiohttp import web
from vllm_fake import FakeVllm, Json, error, shift_sampled, shift_scored

HERE = Path(__file__).parent


def fake_python(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "python"
    script = f'PYTHONPATH={HERE} exec {sys.executable} {Path(__file__)} {folder} "$@"'
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def requests_of(folder: Path) -> list[list[str]]:
    """Return [route, model] of every request that servers of this folder were sent."""
    file = folder / "requests"
    return [line.split(" ") for line in file.read_text().splitlines()] if file.exists() else []


class FaultyVllm(FakeVllm):
    def __init__(self, folder: Path, model: str) -> None:
        super().__init__(model)
        self.folder = folder

    def note(self, path: str, body: Json) -> None:
        is_stuck = (self.folder / "stuck").exists() and body.get("token_ids") in ([9, 5], [0])
        self.hangs = is_stuck or (self.folder / "hangs").exists()
        with (self.folder / "requests").open("a") as log:
            log.write(f"{path} {body.get('model', '-')}\n")
        if "lora_path" in body:
            with (self.folder / "adapters").open("a") as log:
                log.write(f"{body['lora_path']}\n")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        slow = self.folder / "slow"
        if slow.exists() and len((await request.json()).get("token_ids", [0])) > 1:
            await asyncio.sleep(float(slow.read_text()))
        return await super().answer(request)

    def generate(self, body: Json) -> web.Response:
        if (self.folder / "dies").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.folder / "lacking").exists():
            print("RuntimeError: no kernel for heads of 16", file=sys.stderr, flush=True)
            return error(500, "See stack trace (above) for the root cause.")
        status = self.folder / "status"
        if status.exists() and body["token_ids"] != [0]:
            return error(int(status.read_text()), "internal")
        response = super().generate(body)
        for fault, shift, by in (
            ("stale", shift_scored, -1.0),
            ("stale", shift_sampled, -1.0),
            ("skips", shift_sampled, -0.5),
            ("nan", shift_scored, -9999.0),
        ):
            if (self.folder / fault).exists() and response.text and response.status == 200:
                answer = json.loads(response.text)
                shift(answer, by)
                response.text = json.dumps(answer)
        return response


async def serve(folder: Path, *, socket: str, model: str, max_model_len: int) -> None:
    server = FaultyVllm(folder, model)
    server.max_model_len = max_model_len
    runner = web.ServerRunner(web.Server(server.answer))
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    await asyncio.Event().wait()


def main() -> None:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    if "-c" in arguments:
        print('{"vllm": "0.33.1"}')  # it is asked whether it has vLLM, and which
        return
    for fault in ("broken", "fails-once"):
        if (folder / fault).exists():
            if fault == "fails-once":
                (folder / fault).unlink()
            sys.exit("RuntimeError: this GPU has no memory left")
    given = dict(pairwise(arguments))
    model, socket = given["--served-model-name"], given["--uds"]
    max_model_len = int(given.get("--max-model-len", FakeVllm().max_model_len))
    asyncio.run(serve(folder, socket=socket, model=model, max_model_len=max_model_len))


if __name__ == "__main__":
    main()
