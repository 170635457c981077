"""Ranks of the trainer as children of a keeper: today's child program, on a machine of its own.

What they listen on is torch's, not rnow's, and bound to one interface: that which Ray uses, or this
machine's own where all ranks are on it.
"""

import fcntl
import os
import shutil
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from rnow.runtime.channel import Channel

_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR


class KeptRanks:
    """The ranks of one machine, by name."""

    def __init__(self, folder: Path) -> None:
        self.channels: dict[str, Channel] = {}
        self._folder = folder

    async def open(
        self, name: str, program: str, environment: Mapping[str, str], *, address: str
    ) -> Path:
        """Start a rank, which is the module `program`; return the folder for what ranks make."""
        await self.end(name)
        made, log = self._folder / "made", self._folder / f"{name}.log"
        if not self.channels:  # of ranks that have ended
            shutil.rmtree(made, ignore_errors=True)
        made.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        self.channels[name] = await Channel.open(
            program,
            environment={**os.environ, **_sockets_at(address), **environment},
            log_file=log,
            folder=made,
        )
        return made

    async def end(self, name: str) -> None:
        channel = self.channels.pop(name, None)
        if channel is not None:
            await channel.close()


def _sockets_at(address: str) -> dict[str, str]:
    """Return the variables under which gloo and NCCL use the interface that has `address`."""
    name = interface_of(address)
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}


def interface_of(address: str) -> str:
    """interface_of("127.0.0.1") == "lo"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(asking, _INTERFACE_ADDRESS, request)
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise ValueError(f"no network interface of {socket.gethostname()} has the address {address}")
