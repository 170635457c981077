"""What the public client's command line has besides: taken here, so that no habit ends in an error.

What means something on one's own machine is an option of the command it belongs to. The rest is
ignored with a sentence that says why; commands that have nothing to do say that, and succeed.
"""

from typing import Annotated, Any

import typer
from rich.console import Console

from rnow.errors import RnowError
from rnow.runtime.console import sayer

_RUNS_ARE_LOCAL = "runs are local"
_REASONS = {
    "--api-url": _RUNS_ARE_LOCAL,
    "--dataset": "the prompts are the file data.train_file",
    "--debug": "logs/controller.log in a run's folder has all of it",
    "--eval-id": _RUNS_ARE_LOCAL,
    "--max-billing": f"{_RUNS_ARE_LOCAL} and cost nothing",
    "--project-id": _RUNS_ARE_LOCAL,
}
# Its templates -> the nearest of ours.
_BROWSING = ("on-distill-agent", "off-distill-agent", "rl-browser", "web-tasks")
_NEAREST = dict.fromkeys(("start", "first-rl", "new", "blank", "tutorial-tool"), "clinic")
_NEAREST |= dict.fromkeys(_BROWSING, "medbrowsecomp")
_FAR = (
    *("sft", "midtrain", "posttrain", "rl-single", "rl-nextjs", "rl-tools", "kernel"),
    *("mcp-tavily", "deepseek-aha", "finqa", "convfinqa", "quantqa", "adaptllm-finance"),
    *("food-extract", "tutorial-reward", "skyrl-sql"),
)


def hosted_option(*names: str, metavar: str | None = None) -> Any:
    """Make an option that is taken and ignored, or asks for what happens anyway."""
    why = _REASONS.get(names[0], "it is always so")
    help_ = f"Taken for the public client's sake, without effect: {why}."
    return typer.Option(*names, metavar=metavar, hidden=True, help=help_)


Yes = Annotated[bool, hosted_option("--yes", "-y")]
Debug = Annotated[bool, hosted_option("--debug")]
_Words = Annotated[
    list[str] | None,
    typer.Argument(hidden=True, help="Taken for the public client's sake, without effect."),
]


def tell_ignored(console: Console, **given: object) -> None:
    """Say of each option that was given why it has no effect; its name has `_` for `-`."""
    for name, value in given.items():
        if value not in (None, False):
            option = f"--{name.replace('_', '-')}"
            sayer(console)(f"{option} is ignored: {_REASONS[option]}")


def nearest_template(name: str, console: Console) -> str:
    """Return our template for one of the public client's, with a sentence; others as they are."""
    if name in _FAR:
        raise RnowError(
            f"{name} is a template of the public client's, and none is like it here; rnow init "
            "-t clinic makes a small project that trains, to put your own files in"
        )
    nearest = _NEAREST.get(name)
    if nearest is None:
        return name
    sayer(console)(f"{name} is a template of the public client's; the nearest here is {nearest}")
    return nearest


def login(force: Annotated[bool, hosted_option("--force", "-f")] = False) -> None:
    """Say that there is nothing to log in to."""
    typer.echo("runs are local: there is nothing to log in to. Start with: rnow run")


def logout() -> None:
    """Say that there is nothing to log out of."""
    typer.echo("runs are local: there is nothing to log out of")


def orgs(words: _Words = None) -> None:
    """Say that there are no organizations."""
    typer.echo("runs are local: there are no organizations")


def download(
    words: _Words = None,
    output: Annotated[str | None, hosted_option("--output", "-o")] = None,
    keep_archive: Annotated[bool, hosted_option("--keep-archive")] = False,
) -> None:
    """Say where models are."""
    name = words[0] if words else "NAME"
    to = f" -o {output}" if output else ""
    raise RnowError(
        f"runs are local, and so are models: runs/{name}/model. To copy one: rnow export {name}{to}"
    )
