"""What `rnow check` says of the pace of sites: would a step wait for them longer than for the GPUs?

    rollouts a step × calls of each ─┐
    URLs in prompts and tools.py ────┼─▶ requests of each host × its interval ─▶ a step's time?
    intervals, as tools.py sets them ┘

Every call is counted as a request: pages that a run has read before are not asked for again, so
this is the first steps' wait, and at most that of later ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rnow.browser.errors import BrowseError
from rnow.browser.rules.guard import check_url
from rnow.browser.rules.hosts import HostRules
from rnow.browser.settings import BrowserSettings
from rnow.commands.check.sites import named_texts
from rnow.commands.corpus.wanted import urls_in
from rnow.commands.pages import open_pages
from rnow.config.load import LoadedConfig
from rnow.errors import Problem, ToolDefinitionError, UsageError
from rnow.plan.costs import Costs
from rnow.plan.records import seconds_text
from rnow.records import Prompt
from rnow.rollout.environment import browser_settings
from rnow.runtime.main_task import run_main

_KEY = "browser.store_mode"


def site_pace_problem(
    loaded: LoadedConfig,
    directory: Path,
    files: Mapping[str, Sequence[Prompt]],
    costs: Costs,
) -> Problem | None:
    """Return a warning where the slowest host holds a step up for longer than all else; else None.

    Steps that were measured have waited for their sites, and are believed.
    """
    config, step_s = loaded.config, costs.step_s
    is_measured = step_s is not None and step_s.basis == costs.tokens_out.basis
    is_live = config.browser.store_mode in ("live", "record")
    if step_s is None or is_measured or not is_live or config.rollout.max_turns < 2:
        return None
    shares = _host_shares(loaded, directory, files)
    calls = costs.rollouts.value / max(1.0, costs.steps.value) * (config.rollout.max_turns - 1)
    try:
        intervals = run_main(_intervals(loaded, directory, sorted(shares))) if shares else {}
    except (ToolDefinitionError, UsageError):
        return None  # the point `tools` says what is wrong with it
    waits = {host: calls * share * intervals[host] for host, share in shares.items()}
    slowest = max(waits, key=lambda host: waits[host], default=None)
    if slowest is None or waits[slowest] <= step_s.value:
        return None
    return loaded.problem(
        _KEY,
        f"a step asks sites up to {calls:.0f} times, {calls * shares[slowest]:.0f} of them "
        f"{slowest}, which is asked once in {intervals[slowest]:g} s: "
        f"{seconds_text(waits[slowest])}, and all else in a step takes "
        f"{seconds_text(step_s.value)} (estimated); to train on kept pages: rnow corpus build, "
        "then browser.store_mode: replay",
        "warning",
    )


def _host_shares(
    loaded: LoadedConfig, directory: Path, files: Mapping[str, Sequence[Prompt]]
) -> dict[str, float]:
    """Return the share of each host in the URLs that are named; without any, all hosts alike."""
    rules = HostRules(browser_settings(loaded.config, directory))
    counts: Counter[str] = Counter()
    for _, text in named_texts(directory, files):
        counts.update(filter(None, (_host(written, rules) for written in urls_in(text))))
    if not counts:
        counts.update(host for host in loaded.config.browser.allow_hosts if "*" not in host)
    return {host: count / counts.total() for host, count in counts.items()}


def _host(written: str, rules: HostRules) -> str | None:
    """Return the host of a URL that may be read and is another's; None for all others."""
    try:
        url = rules.check(check_url(written, ports=BrowserSettings().ports))
    except BrowseError:
        return None
    return url.raw_host if rules.local_port(url.raw_host) is None else None


async def _intervals(
    loaded: LoadedConfig, directory: Path, hosts: Sequence[str]
) -> dict[str, float]:
    async with open_pages(loaded, directory, store=None, store_mode="live") as pages:
        return await pages.intervals_s(hosts)
