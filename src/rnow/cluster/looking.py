"""What is on a machine of a cluster, and whether all have the same: looked at before a run starts.

Versions are asked of the interpreter itself, without importing anything of it. Nothing of Ray is
imported here.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from rnow.errors import ClusterError
from rnow.plan.devices import find_devices
from rnow.plan.nodes import Machine

_OWN = ("rnow", "torch", "transformers", "peft", "numpy")  # with which ranks compute
_SERVED = ("vllm", "torch", "transformers")
_LOOK_LIMIT_S = 30.0
_ASK = """
import importlib.metadata, json, sys
found = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def describe_machine(id: str, address: str, python: str | None) -> Machine:
    """Look at the node that this runs on; a second, without torch.

    `id`, `address`: what Ray calls it. `python`: engine.python.
    """
    own = versions_of(sys.executable, _OWN)
    assert not isinstance(own, str), own
    return Machine(
        id=id,
        host=socket.gethostname(),
        address=address,
        cores=os.cpu_count() or 1,
        gpus=find_devices({}).gpus,
        own=own,
        served=versions_of(python or sys.executable, _SERVED),
    )


def versions_of(python: str, packages: Sequence[str]) -> dict[str, str] | str:
    """Return the versions that an interpreter has of packages, or why it cannot be asked."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _ASK, *packages],
            capture_output=True,
            text=True,
            timeout=_LOOK_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return f"it does not say its versions (exit code {done.returncode}; {' '.join(last)})"
    return {name: str(version) for name, version in found.items()}


def check_alike(machines: Sequence[Machine], *, python: str | None) -> None:
    """Raise ClusterError where machines have other versions than the first, naming each."""
    wrong = [*_differences(machines, python=python)]
    if wrong:
        lines = "".join(f"\n  {line}" for line in wrong)
        raise ClusterError(
            f"the machines of resources.cluster are not alike:{lines}\nInstall the same versions "
            "on every machine, engine.python under the same path"
        )


def _differences(machines: Sequence[Machine], *, python: str | None) -> Iterator[str]:
    first, where = machines[0], f"engine.python ({python or 'the one of rnow'})"
    for machine in machines:
        if isinstance(machine.served, str):
            yield f"{machine.name}: {where} cannot be run there: {machine.served}"
        elif not isinstance(first.served, str):
            yield from _compared(machine, first, machine.served, first.served, where)
        yield from _compared(machine, first, machine.own, first.own, "rnow's environment")


def _compared(
    machine: Machine, first: Machine, there: Mapping[str, str], here: Mapping[str, str], where: str
) -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            yield (
                f"{machine.name}: {where} has {name} {there.get(name, 'not at all')}, on "
                f"{first.name} {here.get(name, 'not at all')}"
            )
