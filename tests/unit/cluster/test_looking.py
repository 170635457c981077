"""Versions of the machines of a cluster: asked of interpreters, compared, told with names."""

import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from rnow.cluster.looking import check_alike, describe_machine, versions_of
from rnow.errors import ClusterError
from rnow.plan.nodes import Machine

OWN = {"rnow": "0.1.0", "torch": "2.13.0"}
SERVED = {"vllm": "0.33.1"}


def machine(
    host: str, *, own: Mapping[str, str] = OWN, served: Mapping[str, str] | str = SERVED
) -> Machine:
    return Machine(
        id=f"{host}-0123456789",
        host=host,
        address="10.0.0.5",
        cores=2,
        gpus=(),
        own=own,
        served=served,
    )


def test_an_interpreter_says_what_it_has_and_nothing_of_what_it_lacks() -> None:
    assert versions_of(sys.executable, ("torch", "no-such-package")) == {
        "python": sys.version.split()[0],
        "torch": metadata.version("torch"),
    }


def test_what_is_no_interpreter_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho one >&2\necho no such library >&2\nexit 3\n")
    program.chmod(0o755)
    assert versions_of(str(program), ("vllm",)) == (
        "it does not say its versions (exit code 3; no such library)"
    )
    assert versions_of(str(tmp_path / "none"), ("vllm",)) == (
        f"[Errno 2] No such file or directory: '{tmp_path}/none'"
    )


def test_this_machine_is_like_itself() -> None:
    here = describe_machine("0123456789abcdef", "10.0.0.5", None)
    assert here.own["rnow"] == metadata.version("rnow")
    assert isinstance(here.served, dict)
    check_alike((here, here), python=None)


def test_each_difference_is_named_with_its_machine() -> None:
    machines = (
        machine("a"),
        machine("b", own={**OWN, "torch": "2.12.1"}, served={}),
        machine("c", served="no such file"),
    )
    with pytest.raises(ClusterError) as refused:
        check_alike(machines, python="/opt/vllm/bin/python")
    assert str(refused.value) == (
        "the machines of resources.cluster are not alike:\n"
        "  b (b-012345): engine.python (/opt/vllm/bin/python) has vllm not at all, on a (a-012345) "
        "0.33.1\n"
        "  b (b-012345): rnow's environment has torch 2.12.1, on a (a-012345) 2.13.0\n"
        "  c (c-012345): engine.python (/opt/vllm/bin/python) cannot be run there: no such file\n"
        "Install the same versions on every machine, engine.python under the same path"
    )
