"""Local sites: folders of pages that the controller serves on loopback for the length of a run.

    async with LocalSites({"clinic.test": Path("site")}) as sites:
        BrowserSettings(local_sites=sites.ports)        # https://clinic.test/trial/1

`/trial/1` is site/trial/1.html, and `/` is site/index.html. `127.0.0.1:8000` in the place of
a folder is a server that somebody else runs. Every host has a port of its own, so that a page of
one cannot pass for a page of another.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from rnow.errors import ConfigError

_OWN_SERVER = re.compile(r"127\.0\.0\.1:(\d{1,5})")


class LocalSites:
    """Serves {host: folder}, and counts what is asked for. `ports` is there once it is entered."""

    def __init__(self, folders: Mapping[str, str | Path]) -> None:
        self.ports: dict[str, int] = {}
        self.num_requests = 0
        self._folders: dict[str, Path] = {}
        self._runners: list[web.AppRunner] = []
        for host, place in folders.items():
            server = _OWN_SERVER.fullmatch(str(place))
            if server is not None:
                self.ports[host] = int(server[1])
                continue
            folder = Path(place).resolve()
            if not folder.is_dir():
                raise ConfigError(
                    f"browser.local_sites: {host}: {place} is not a folder; make it, or name a "
                    "server of your own as 127.0.0.1:PORT"
                )
            self._folders[host] = folder

    async def __aenter__(self) -> "LocalSites":
        try:
            for host, folder in self._folders.items():
                self.ports[host] = await self._serve(folder)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._runners:
            await self._runners.pop().cleanup()

    async def _serve(self, folder: Path) -> int:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.num_requests += 1
            file = find_file(folder, request.path)
            if file is None:
                raise web.HTTPNotFound
            return web.FileResponse(file)

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, port = runner.addresses[0][:2]
        return int(port)


def find_file(folder: Path, path: str) -> Path | None:
    """Return the file that a URL's decoded path names; None where `folder` holds none.

    `folder` is resolved: neither `..` nor a link leads out of it.
    """
    name = path.strip("/")
    candidates = (name, f"{name}.html", f"{name}/index.html") if name else ("index.html",)
    for candidate in candidates:
        try:
            file = (folder / candidate).resolve()
            if file.is_relative_to(folder) and file.is_file():
                return file
        except (OSError, ValueError):  # too long, or a NUL: names no file
            continue
    return None
