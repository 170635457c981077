"""The teacher: how likely it finds each token that the student sampled.

A trajectory is scored once, whole, as soon as it ends, while others still roll out. A
log-probability that is missing or not finite is an error, never a number. What is wrong with a
teacher is found before the first step (`preflight`) or within one step (`check_health`): a teacher
that silently went bad gives a loss that looks fine.

Deadlines, and what is tried again, are the engine's: it knows what may pass.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rnow.engines.base import Engine, ScoreRequest
from rnow.errors import DeadlineError, EngineError, TeacherError
from rnow.records import FloatArray, IntArray, ScoredTrajectory, Trajectory
from rnow.runtime.kill_points import point
from rnow.runtime.side_by_side import side_by_side

NUM_REPEATS = 4  # the same sequence, at once, in preflight


class Teacher:
    """Scores trajectories on an engine, at most `concurrency` at a time.

    `tolerance` is how far two answers for one sequence may be apart, in nats a token: 0.001 in
    float32, more in bfloat16, where the shape of a batch changes the rounding.
    """

    def __init__(self, engine: Engine, *, concurrency: int, tolerance: float) -> None:
        self.engine = engine
        self.tolerance = tolerance
        self._slots = asyncio.Semaphore(concurrency)
        self._health: tuple[ScoreRequest, FloatArray] | None = None

    async def score(self, trajectory: Trajectory) -> ScoredTrajectory:
        """Return the trajectory with the teacher's log-probability of every action token.

        Raises TeacherError if it cannot be scored: the caller drops it and counts it.
        """
        async with self._slots:
            logprobs = await self._score(_request(trajectory), trajectory.id)
        point("teacher/scored")
        teacher_logprobs = np.full(trajectory.num_tokens, np.nan, dtype=np.float32)
        teacher_logprobs[trajectory.action_mask] = logprobs
        return ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher_logprobs)

    async def favourites(self, trajectory: Trajectory, num: int) -> tuple[IntArray, FloatArray]:
        """Return its `num` likeliest ids and their log-probabilities, [sampled tokens, num].

        Raises TeacherError where the engine does not tell them.
        """
        async with self._slots:
            try:
                scores = await self.engine.score(_request(trajectory, num_top=num))
            except (EngineError, DeadlineError) as error:
                raise TeacherError(f"no favourites of {trajectory.id}: {error}") from error
        return scores.top_ids, scores.top_logprobs

    async def preflight(self, token_ids: Sequence[int], *, max_context_window: int) -> None:
        """Refuse a teacher that cannot be trained on; remember what it says of `token_ids`.

        `token_ids` is a short real prompt, at least two tokens. The longest allowed trajectory is
        that prompt again and again, up to `max_context_window` tokens.
        """
        ids = list(token_ids)
        whole = ScoreRequest(token_ids=tuple(ids), start=1)
        answers = await side_by_side(*(self._score(whole, "preflight") for _ in range(NUM_REPEATS)))
        spread = max(float(np.abs(answer - answers[0]).mean()) for answer in answers)
        if spread > self.tolerance:
            raise TeacherError(
                f"the teacher answers the same {len(ids)} tokens, sent {NUM_REPEATS} times at "
                f"once, differently: {spread:.3g} nats a token apart (tolerance "
                f"{self.tolerance:g}). "
                "Turn its prefix cache off, or use a wider dtype"
            )
        # Two or three tokens can be equally likely by chance.
        if len(answers[0]) > 3 and float(np.ptp(answers[0])) < 1e-6:
            raise TeacherError(
                f"the teacher finds every token equally likely ({answers[0][0]:.3f} nats): "
                "its weights are not loaded"
            )
        longest = (ids * (max_context_window // len(ids) + 1))[: max(2, max_context_window)]
        try:
            # From the end of the prompt on, as a trajectory is: the memory is to be the same.
            start = min(len(ids), len(longest) - 1)
            request = ScoreRequest(token_ids=tuple(longest), start=start)
            await self._score(request, "preflight, longest")
        except TeacherError as error:
            raise TeacherError(
                f"the teacher cannot score {max_context_window} tokens, the longest trajectory "
                f"that rollout.max_context_window allows; lower it. It said: {error}"
            ) from error
        self._health = (whole, answers[0])
        # An engine that starts a server again compares it with this.
        await self.engine.probe(replace(whole, policy_version=0))

    async def check_health(self) -> None:
        """Score the preflight's sequence again; raise TeacherError if the answer has changed."""
        assert self._health, "preflight comes first"
        request, before = self._health
        logprobs = await self._score(request, "health check")
        drift = float(np.abs(logprobs - before).mean())
        if drift > self.tolerance:
            raise TeacherError(
                f"the teacher has changed since the run began: it now answers {drift:.3g} nats a "
                f"token away on a fixed sequence (tolerance {self.tolerance:g}). Was it restarted "
                "with other weights?"
            )

    async def _score(self, request: ScoreRequest, what: object) -> FloatArray:
        try:
            scores = await self.engine.score(request)
        except (EngineError, DeadlineError) as error:
            raise TeacherError(f"the teacher could not score {what}: {error}") from error
        expected = len(request.asked)
        if len(scores.logprobs) != expected or not np.isfinite(scores.logprobs).all():
            raise TeacherError(
                f"the teacher gave {len(scores.logprobs)} log-probabilities for {what}, "
                f"{int(np.isfinite(scores.logprobs).sum())} of them finite, not {expected}"
            )
        return scores.logprobs


def _request(trajectory: Trajectory, *, num_top: int = 0) -> ScoreRequest:
    """Ask for the action tokens alone: most of a trajectory is text that tools wrote."""
    actions = tuple(np.flatnonzero(trajectory.action_mask).tolist())
    token_ids = tuple(trajectory.token_ids.tolist())
    return ScoreRequest(token_ids=token_ids, start=actions[0], positions=actions, num_top=num_top)
