"""What another machine can reach of a run on a cluster: two network namespaces and a wire."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from served_lab import Lab

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
HERE, THERE = "10.77.0.1", "10.77.0.2"
KNOCK = """
import json, socket, sys
host, ports, open_ports = sys.argv[1], json.loads(sys.argv[2]), []
for port in ports:
    with socket.socket() as knocking:
        knocking.settimeout(2)
        if knocking.connect_ex((host, port)) == 0:
            open_ports.append(port)
print(json.dumps(open_ports))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """The names of two network namespaces that see each other at HERE and THERE."""
    names = (f"rnow-a{os.getpid()}", f"rnow-b{os.getpid()}")
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        ip("link", "add", "wa", "netns", names[0], "type", "veth", "peer", "wb", "netns", names[1])
        for name, end, address in zip(names, ("wa", "wb"), (HERE, THERE), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def listening(pid: int) -> dict[int, tuple[str, int]]:
    """Return address and port of every listening socket of the process's network, by inode."""
    found = {}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == "0A":
            address, port = local.split(":")
            host = socket.inet_ntoa(bytes.fromhex(address)[::-1])
            found[int(rest[5])] = (host, int(port, 16))
    return found


def command_of(inode: int) -> str:
    """Return the command line of the process that has the socket."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(file) for file in (folder / "fd").iterdir()]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"socket:[{inode}]" in links:
            return command
    return "?"


@pytest.mark.parametrize("ranks", ["0 0", "0 1"])
def test_another_machine_reaches_ports_of_rays_alone_and_of_ranks_that_have_to_meet(
    two_machines: tuple[str, str], tmp_path: Path, ranks: str
) -> None:
    this, other = two_machines
    lab = Lab(tmp_path / "servers")
    in_this = ["ip", "netns", "exec", this, sys.executable]
    script = TESTS / "cluster_controller.py"
    with subprocess.Popen(
        [*in_this, str(script), f"new:{HERE}", str(lab.folder), *ranks.split()],
        stdout=subprocess.PIPE,
        text=True,
    ) as controller:
        try:
            assert controller.stdout is not None
            assert len(json.loads(controller.stdout.readline())) == 2
            sockets = listening(lab.pids()[0])
            ports = sorted({port for _, port in sockets.values()})
            knocking = ["ip", "netns", "exec", other, sys.executable, "-c", KNOCK, HERE]
            answer = subprocess.run(
                [*knocking, json.dumps(ports)], capture_output=True, text=True, check=True
            )
            reached = set(json.loads(answer.stdout))
            commands = {
                port: command_of(inode) for inode, (_, port) in sockets.items() if port in reached
            }
            rays = re.compile(r"/ray/|ray::|site-packages/ray|cluster_controller")
            others = {line for line in commands.values() if not rays.search(line)}
            are_apart = len({*ranks.split()}) > 1
            assert [line for line in others if "rnow.training.ranks.program" not in line] == []
            assert bool(others) == are_apart  # torch's store and gloo, between two machines
            assert len(reached) >= 2  # Ray's own are open, or nothing was knocked at
            hosts = {
                host
                for inode, (host, _) in sockets.items()
                if "vllm_fake_process" in command_of(inode)
            }
            assert hosts <= {"127.0.0.1"}
        finally:
            controller.kill()
