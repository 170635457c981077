"""`rnow check`: all that can be known about a project before a model is loaded.

    config, tools, data      config.yml, tools.py, train.jsonl and val.jsonl   files.py
    rewards                  rewards.py, and the names that the others give
    tokenizers, template     do both models mean the same by an id; can the ledger use the
                             chat template                                     models.py
    window, devices          does the longest prompt leave room; can the models run here
    servers                  do those of engine.url and teacher.url answer         servers.py
    sites                    may those that prompts and tools name be read         sites.py
    plan                     steps, tokens, disk, time, GPU hours, each with what it is from
    disk                     where it has no room for that                         disk.py

Each point ends as ok, problem, or not checked with the reason. A point is checked whenever what it
needs is there, so that one look shows every problem and not the first alone. Nothing is downloaded;
of weights names and shapes are read, and 64 MB for NaN and infinity; tools.py is imported in a
process of its own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rnow.commands.arguments import Args, Dir, Json, find_project, make_console, refuse_run_folder
from rnow.commands.check.point import Outcome, Point, not_checked

if TYPE_CHECKING:
    from rnow.plan.costs import Costs

Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Do not ask the servers of engine.url and teacher.url, nor any site."
    ),
]

_MARKS = {Outcome.OK: "✓", Outcome.PROBLEM: "✗", Outcome.NOT_CHECKED: "–"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All points, in the order in which they were checked."""

    points: tuple[Point, ...]
    costs: "Costs | None" = None  # None: not known, for the reason of the point `plan`

    @property
    def ok(self) -> bool:
        """Whether there is no problem; a point that was not checked is none."""
        return all(point.outcome != Outcome.PROBLEM for point in self.points)

    def lines(self) -> Iterator[str]:
        """Yield the report as a person reads it."""
        for point in self.points:
            unchecked = "not checked: " if point.outcome == Outcome.NOT_CHECKED else ""
            first, *further = f"{unchecked}{point.message}".splitlines() or [""]
            yield f"{_MARKS[point.outcome]} {point.name:<10}  {first}"
            yield from (f"    {line}" for line in further)
            for problem in point.problems:
                mark = "✗" if problem.severity == "error" else "!"
                first, *others = str(problem).splitlines()
                yield f"    {mark} {first}"
                yield from (f"      {line}" for line in others)


def check(
    args: Args = None, directory: Dir = None, offline: Offline = False, json_: Json = False
) -> None:
    """Say all that can be known of a project before a model is loaded.

    Looks at config.yml, tools.py, rewards.py, the prompts, and whether the
    models can run here. It takes seconds, downloads nothing and needs no GPU,
    so it is what to do after each change. Servers of your own (engine.url,
    teacher.url) are asked whether they can do what a run needs, and each site
    that prompts, tools.py and browser.allow_hosts name, once, whether it may
    be read. Exit code 1 if there is a problem.

    Example: rnow check my-project
    """
    project, overrides = find_project(args, directory)
    report_check(project, overrides, None if json_ else make_console(), is_offline=offline)


def report_check(
    project: Path, overrides: list[str], console: Console | None, *, is_offline: bool = False
) -> None:
    """Check, and print the report, as JSON where no console is given; typer.Exit for a problem."""
    refuse_run_folder(project)
    people = console or make_console(to_stderr=True)
    report = check_project(project, overrides, is_offline=is_offline, say=people.print)
    if console is None:
        typer.echo(as_json(report))
    else:
        for line in report.lines():
            console.print(line, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


def check_project(
    directory: Path,
    overrides: Sequence[str] = (),
    *,
    is_offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Check the project in `directory` with `key=value` overrides laid over its config.yml.

    `is_offline`: neither servers of the user's own nor sites are asked. `say` is told of what takes
    long.
    """
    from rnow.commands.check.disk import check_disk
    from rnow.commands.check.files import check_config, check_data, check_rewards, check_tools
    from rnow.commands.check.models import (
        check_chat,
        check_devices,
        check_plan,
        check_tokenizers,
    )
    from rnow.commands.check.servers import check_servers
    from rnow.commands.check.sites import check_sites

    config, loaded = check_config(directory, overrides)
    tools, schemas = check_tools(directory, loaded, say=say)
    data, files = check_data(directory, loaded, schemas=schemas)
    prompts, *held_out = files.values() or [None]
    points, costs = [config, tools, data], None
    if loaded is None:
        names = ("rewards", "tokenizers", "template", "window", "devices", "plan")
        points += [not_checked(name, "config.yml has problems") for name in names]
    else:
        points.append(check_rewards(directory, loaded, files, say=say))
        points.append(check_tokenizers(loaded, directory))
        points += check_chat(loaded, directory, schemas=schemas, files=files)
        devices, placement = check_devices(loaded, directory)
        plan, costs = check_plan(
            loaded,
            directory,
            placement,
            schemas=schemas,
            prompts=prompts,
            num_held_out=sum(len(one) for one in held_out if one is not None),
            files=files,
        )
        servers = check_servers(loaded, is_offline=is_offline)
        sites = check_sites(loaded, directory, files, is_offline=is_offline)
        disk = None if costs is None else check_disk(loaded, directory, costs)
        found = (devices, servers, sites, plan, disk)
        points += [one for one in found if one is not None]
    return CheckReport(points=tuple(points), costs=costs)


def as_json(report: CheckReport) -> str:
    """Return the problems, warnings too, and the plan, null where there is none, as one line of
    JSON.

    {"problems": [{"file": "config.yml", "line": 3, "key": "seed", "message": "…",
                   "severity": "error"}],
     "plan": {"steps": {"value": 20, "basis": "from the settings"}, …, "bound_by": "student"}}
    """
    problems = [asdict(problem) for point in report.points for problem in point.problems]
    plan = None if report.costs is None else report.costs.as_json()
    return json.dumps({"problems": problems, "plan": plan}, ensure_ascii=False)
