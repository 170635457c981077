"""What `rnow test` does with a project: a few rollouts, shown and kept; nothing is trained.

    entries ─▶ rollouts, side by side ─▶ each as it ends: rewards, its file, its transcript

They are what training would roll out: temperature 1, real tools, the same limits. One that fails is
not tried again, since a failure is what one looks for here.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rnow.chat.conversation import conversation, turn_text
from rnow.chat.template import ChatTemplate
from rnow.commands.arguments import run_name
from rnow.commands.contact import decide_contact
from rnow.commands.test.entries import choose_entries
from rnow.commands.test.sample import Sample, make_folder, write_sample
from rnow.commands.test.tool_statistics import tool_statistics
from rnow.commands.test.view import Cuts, show_line, show_tools, show_transcript
from rnow.config.load import LoadedConfig, require_messages
from rnow.engines.base import Engine
from rnow.errors import GradingError, Interrupted, RnowError
from rnow.evaluation.grading import Grading, open_grading
from rnow.evaluation.subject import (
    Subject,
    choose_model,
    in_its_run,
    open_subject,
    prepared_subject,
)
from rnow.records import Prompt, RolloutId, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.rollout.environment import Environment, open_environment
from rnow.rollout.many import roll_many
from rnow.runtime.console import sayer
from rnow.runtime.logs import log_to
from rnow.runtime.main_task import run_main
from rnow.runtime.signals import StopRequest
from rnow.tools.graders import Grade
from rnow.tools.rewards import NO_REWARDS, RewardRunner, Rewards

TEST_STEP = -2  # training's steps begin at 0, evaluation's is -1
SHORT = {"max_turns": 2, "max_tokens": 64}
NO_TOOLS = {"max_turns": 1}
MAX_TRANSCRIPTS = 5  # of more rollouts only a line each is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line asks for."""

    model: str | None  # as rnow.evaluation.subject.choose_model takes it
    entries: Sequence[str] = ()  # as rnow.commands.test.entries.choose_entries does
    all_entries: bool = False
    num_rollouts: int = 1
    is_short: bool = False  # SHORT turns and tokens at most
    with_tools: bool = True
    verbose: bool = False
    truncate: bool = False

    @property
    def cuts(self) -> Cuts:
        if self.verbose:
            return Cuts(said=None, results=None)
        return Cuts(said=200, results=200) if self.truncate else Cuts(said=None, results=800)


def try_project(
    loaded: LoadedConfig, project: Path, *, wishes: Wishes, console: Console
) -> dict[str, Any]:
    """Roll out, show and keep; return the figures. "failed" counts rollouts without an answer."""
    require_messages(loaded)
    loaded = decide_contact(loaded, console)
    choice = choose_model(loaded, project, name=wishes.model, run=run_name(loaded, project))
    loaded = in_its_run(loaded, choice)
    loaded = _capped(loaded, wishes)
    say = sayer(console)
    trial = _Trial(loaded=loaded, project=project, wishes=wishes, console=console, say=say)
    prepared = prepared_subject(loaded, project, choice=choice, command="test", say=say)
    with prepared as (subject, logs):
        try:
            run_main(trial.run(subject, log_file=logs.folder / "tools.log"))
        except Interrupted as stop:
            raise Interrupted(f"{stop}: {trial.how_many()}", stop.exit_code) from stop
        finally:
            show_tools(trial.samples, console)
        logs.are_kept = not trial.went_well
    trial.show_end()
    return {"model": choice.name, **trial.as_json()}


@dataclass(slots=True, kw_only=True)
class _Trial:
    """The rollouts of one call; `samples` grows while they run."""

    loaded: LoadedConfig
    project: Path
    wishes: Wishes
    console: Console
    say: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)
    number_of: dict[RolloutId, int] = field(default_factory=dict)
    num_wanted: int = 0
    folder: Path | None = None
    rewards: RewardRunner | None = None
    grading: Grading | None = None

    async def run(self, subject: Subject, *, log_file: Path) -> None:
        """Roll out. Tools write to `log_file`, rnow and rewards.py to files beside it.

        Raises Interrupted where it was asked to stop; what had ended by then is kept.
        """
        with StopRequest() as stop, log_to(log_file.with_name("controller.log")):
            await stop.cut(self._run(subject, log_file=log_file))

    def how_many(self) -> str:
        """Say how much is done, and where it is."""
        done = f"{len(self.samples)} of {self.num_wanted} rollouts have ended"
        return done if self.folder is None else f"{done} and are kept in {self.folder}"

    @property
    def went_well(self) -> bool:
        """Whether all rollouts came to an end, rewards to a number, graders to a verdict."""
        return not any(sample.error or sample.errors for sample in self.samples)

    def show_end(self) -> None:
        line = f"Rollout Complete: {self.how_many()}"
        graded = [sample.grade for sample in self.samples if sample.grade is not None]
        if graded:
            line += f"; {sum(grade.correct for grade in graded)} of {len(graded)} are correct"
        if ungraded := sum(sample.grading_error is not None for sample in self.samples):
            line += f"; {ungraded} could not be graded"
        totals = self._totals()
        if totals:
            line += f"; avg_reward={sum(totals) / len(totals):.3f}"
        if failed := self._num_failed_rewards():
            line += f", in which {failed} without a number count as 0"
        self.say(line)

    def as_json(self) -> dict[str, Any]:
        samples, totals = self.samples, self._totals()
        trajectories = [item.trajectory for item in samples if item.trajectory is not None]
        return {
            "folder": str(self.folder),
            "rollouts": len(samples),
            "failed": sum(sample.error is not None for sample in samples),
            "mean_reward": sum(totals) / len(totals) if totals else None,
            "failed_rewards": self._num_failed_rewards(),
            "entries": [sample.prompt.index for sample in samples],
            "files": [str(sample.file) for sample in samples],
            "tools": {tool.name: tool.as_json() for tool in tool_statistics(trajectories)},
        }

    def _totals(self) -> list[float]:
        totals = (sample.rewards.total for sample in self.samples)
        return [total for total in totals if total is not None]

    def _num_failed_rewards(self) -> int:
        return sum(len(sample.rewards.errors) for sample in self.samples)

    async def _run(self, subject: Subject, *, log_file: Path) -> None:
        config, wishes = self.loaded.config, self.wishes
        async with AsyncExitStack() as stack:
            opening = open_environment(
                self.loaded,
                self.project,
                student=subject.engine.model,
                log_file=log_file,
                with_tools=wishes.with_tools,
            )
            environment = await stack.enter_async_context(opening)
            file = environment.read_prompts(config.data.train_file)
            entries = choose_entries(
                wishes.entries,
                all_=wishes.all_entries,
                num_rollouts=wishes.num_rollouts,
                num_entries=len(file.prompts),
                seed=config.seed,
                file=config.data.train_file,
            )
            prompts = [file.prompts[entry] for entry in entries]
            self.num_wanted = len(prompts)
            for notice in (*file.notices, *environment.check({config.data.train_file: prompts})):
                self.say(notice)
            if len(prompts) > MAX_TRANSCRIPTS and not wishes.verbose:
                self.say(f"{len(prompts)} rollouts, a line each; -v shows their transcripts")
            await self._open_rewards(stack, prompts, log_file=log_file)
            opened = open_subject(subject, say=self.say)
            engine, version = await stack.enter_async_context(opened)
            self.folder = make_folder(self.project)
            await self._roll_all(environment, engine, prompts, version)

    async def _open_rewards(
        self, stack: AsyncExitStack, prompts: Sequence[Prompt], *, log_file: Path
    ) -> None:
        """Start the process of rewards.py, if there is one and an entry names something of it."""
        is_there = (self.project / "rewards.py").is_file()
        is_named = any(prompt.rewards for prompt in prompts)
        if is_named and not is_there:
            self.say("these entries name rewards, but there is no rewards.py: none are computed")
        opened = open_grading(
            self.loaded,
            self.project,
            prompts,
            file=self.loaded.config.data.train_file,
            log_file=log_file.with_name("rewards.log"),
            with_rewards=is_there,
        )
        self.grading = await stack.enter_async_context(opened)
        if is_named and is_there:
            self.rewards = self.grading.rewards
        elif self.grading.rewards is None and is_there:
            self.say("there is a rewards.py, but these entries name no rewards: none are computed")

    async def _roll_all(
        self, environment: Environment, engine: Engine, prompts: Sequence[Prompt], version: int
    ) -> None:
        seen: Counter[int] = Counter()
        attempts: list[Attempt] = []
        for number, prompt in enumerate(prompts, start=1):
            id = RolloutId(TEST_STEP, prompt.index, seen[prompt.index])
            seen[prompt.index] += 1
            self.number_of[id] = number
            attempts.append(Attempt(prompt=prompt, id=id, policy_version=version))
        await roll_many(
            attempts,
            environment.roll(engine),
            partial(self._keep_answer, environment),
            lose=partial(self._keep, environment.chat),
            concurrency=self.loaded.config.rollout.concurrency,
            num_tries=1,
        )
        self.samples.sort(key=lambda sample: sample.number)

    async def _keep_answer(
        self, environment: Environment, attempt: Attempt, trajectory: Trajectory
    ) -> None:
        prompt, chat = attempt.prompt, environment.chat
        verdict, grading_error, rewards = None, None, NO_REWARDS
        if "expected_answer" in prompt.metadata:
            assert self.grading is not None, "opened before the first rollout"
            try:
                verdict = await self.grading.grade(
                    prompt, turn_text(trajectory, trajectory.turns[-1], chat)
                )
            except GradingError as error:
                grading_error = str(error)
        if self.rewards is not None:
            include = environment.config.rollout.include_thinking
            messages = conversation(prompt, trajectory, chat, include_thinking=include)
            rewards = await self.rewards.reward(prompt, messages)
        self._keep(
            chat,
            attempt,
            trajectory=trajectory,
            grade=verdict,
            grading_error=grading_error,
            rewards=rewards,
        )

    def _keep(
        self,
        chat: ChatTemplate,
        attempt: Attempt,
        error: RnowError | None = None,
        *,
        trajectory: Trajectory | None = None,
        grade: Grade | None = None,
        grading_error: str | None = None,
        rewards: Rewards = NO_REWARDS,
    ) -> None:
        """Write and show a rollout that has ended, with a trajectory or with an error."""
        assert self.folder is not None, "made before the first rollout"
        number = self.number_of[attempt.id]
        sample = Sample(
            number=number,
            prompt=attempt.prompt,
            trajectory=trajectory,
            error=None if error is None else str(error),
            grade=grade,
            grading_error=grading_error,
            rewards=rewards,
            file=self.folder / f"sample_{number}.json",
        )
        write_sample(sample, chat)
        self.samples.append(sample)
        if self.wishes.verbose or self.num_wanted <= MAX_TRANSCRIPTS:
            show_transcript(sample, chat, cuts=self.wishes.cuts, console=self.console)
        show_line(sample, project=self.project, console=self.console)


def _capped(loaded: LoadedConfig, wishes: Wishes) -> LoadedConfig:
    """Return the config with rollouts as short as they are wished for; without tools, one turn."""
    rollout = loaded.config.rollout
    wanted = {**(SHORT if wishes.is_short else {}), **({} if wishes.with_tools else NO_TOOLS)}
    caps = {key: min(rollout.model_dump()[key] or cap, cap) for key, cap in wanted.items()}
    shorter = rollout.model_copy(update=caps)
    return replace(loaded, config=loaded.config.model_copy(update={"rollout": shorter}))
