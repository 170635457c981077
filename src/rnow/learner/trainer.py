"""One optimizer step on one batch: forward, backward, clip, AdamW.

A step whose loss, gradient norm or other numbers are not finite moves nothing: its batch is handed
out for inspection, and the third one in a row ends the run.

AdamW has torch's own settings (betas 0.9 and 0.999, eps 1e-8). All calls block: an event loop runs
them in a thread.
"""

from collections.abc import Callable, Mapping, Sequence
from math import cos, isfinite, pi
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.errors import BadNumbersError, OutOfMemoryError
from rnow.learner.checkpoint import check_student
from rnow.learner.lag import lag_metrics, lags
from rnow.learner.objective import LossTotals, compute_objective
from rnow.learner.packing import MicroBatch, pack
from rnow.learner.policy import Policy
from rnow.records import Batch, FloatArray
from rnow.runtime.kill_points import point

if TYPE_CHECKING:
    from rnow.learner.ranks.group import Ranks

MAX_BAD_UPDATES = 3
_FORMER = "former/"  # in a checkpoint: a weight as it was before the last update

OnLogprobs = Callable[[Batch, Mapping[int, FloatArray]], None]


class Trainer:
    """Moves a policy's weights. Its own state is AdamW's moments, a count, and where rollouts lag
    behind (trainer.max_policy_lag) the weights before the last update, on the CPU."""

    def __init__(
        self,
        policy: Policy,
        *,
        settings: TrainerSettings,
        algorithm: AlgorithmSettings,
        num_steps: int,
        on_bad_numbers: Callable[[Batch, str], None],
        on_logprobs: OnLogprobs = lambda batch, logprobs: None,
        ranks: "Ranks | None" = None,
    ) -> None:
        """`num_steps` are those of the whole run, for the schedule.

        `on_bad_numbers(batch, reason)` keeps the batch of a skipped update for inspection.
        `on_logprobs(batch, logprobs)` is given what the weights before an update that was taken
        gave each action token, by the trajectory's place in the batch.
        `ranks`: the processes of which this is one, where several make an update together: each
        is given the whole batch, and returns the metrics of all of it.
        """
        self._policy = policy
        self._ranks = ranks
        self._settings = settings
        self._algorithm = algorithm
        self._num_steps = num_steps
        self._on_bad_numbers = on_bad_numbers
        self._on_logprobs = on_logprobs
        self._parameters = policy.trained_parameters()
        self._num_bad_updates = 0  # in a row
        self._former = self._copy() if settings.max_policy_lag else {}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

    def update(self, batch: Batch) -> dict[str, float]:
        """Take one step; return its metrics, all finite: one that is not is left out.

        `trainer/skipped` is 1 where numbers were not finite: then the weights are as before. Raises
        BadNumbersError at the third in a row that could not be taken.
        """
        max_tokens = self._settings.max_tokens_per_micro_batch
        micro_batches = pack(batch, max_tokens=max_tokens, pads=self._policy.pads)
        logprobs: dict[int, FloatArray] = {}
        try:
            totals = accumulate_gradients(
                self._policy,
                micro_batches,
                algorithm=self._algorithm,
                num_actions=batch.num_actions,
                logprobs=logprobs,
                ranks=self._ranks,
            )
            apart = self._lag_metrics(batch)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the update of step {batch.step} ran out of memory: {error}. Lower "
                "trainer.max_tokens_per_micro_batch "
                f"({max_tokens}) or set "
                "trainer.activation_checkpointing: true; the run goes on at this step, its "
                "rollouts are kept"
            ) from error
        grad_norm = self._clip()
        learning_rate = self._settings.learning_rate * learning_rate_factor(
            batch.step, settings=self._settings, num_steps=self._num_steps
        )
        metrics = {**_totals_to_metrics(totals, num_actions=batch.num_actions), **apart}
        metrics["trainer/grad_norm"] = grad_norm
        metrics["trainer/learning_rate"] = learning_rate
        metrics["trainer/num_micro_batches"] = float(len(micro_batches))
        metrics["tokens/total"] = float(sum(item.trajectory.num_tokens for item in batch.scored))
        bad = {name: value for name, value in metrics.items() if not isfinite(value)}
        former = self._copy() if self._former else {}
        if bad:
            self._skip(batch, bad)
        else:
            self._num_bad_updates = 0
            self._optimizer.param_groups[0]["lr"] = learning_rate
            point("update/computed")
            self._optimizer.step()
            point("update/stepped")
            if self._ranks is not None:
                self._ranks.check_alike(self._parameters, when=f"after step {batch.step}")
                logprobs = self._ranks.join_all(logprobs)
            self._on_logprobs(batch, logprobs)
        self._former = former
        self._optimizer.zero_grad()  # now, so that the rollouts have the memory
        metrics["trainer/skipped"] = float(bool(bad))
        return {name: value for name, value in metrics.items() if name not in bad}

    def probe_logprobs(self, token_ids: Sequence[int], *, start: int) -> FloatArray:
        """Return log p(token_ids[i] | token_ids[:i]) for i >= start >= 1, as `Engine.score`."""
        device = self._policy.device
        with torch.no_grad():
            logprobs = self._policy.action_logprobs(
                torch.tensor([list(token_ids)], device=device),
                position_ids=torch.arange(len(token_ids), device=device)[None],
                action_index=torch.arange(start, len(token_ids), device=device),
            )
        if self._ranks is not None and self._ranks.is_sharded:
            from rnow.learner.ranks.sharding import let_go

            let_go(self._policy.network)
        answer: FloatArray = logprobs.float().cpu().numpy()
        return answer

    def swap(self) -> None:
        """Exchange the weights with those before the last update; twice, and all is as it was."""
        now = self._copy()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._former[name])
        self._former = now

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return what an update depends on beside the weights: live tensors, plain numbers."""
        tensors = {
            f"{key}/{name}": value
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }
        tensors |= {f"{_FORMER}{name}": value for name, value in self._former.items()}
        return tensors, {"num_bad_updates": self._num_bad_updates}

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, int]) -> None:
        """Put back what `state` gave, bit for bit, or raise CheckpointError."""
        self._optimizer.state.clear()
        former = {
            name.removeprefix(_FORMER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_FORMER)
        }
        if self._former:
            known = {name: tuple(tensor.shape) for name, tensor in self._former.items()}
            check_student(former, known, what="'s weights before its last update")
            self._former = {name: tensor.to("cpu", copy=True) for name, tensor in former.items()}
        if len(tensors) > len(former):  # before the first update there are no moments
            shapes: dict[str, tuple[int, ...]] = {}
            for name, parameter in self._parameters.items():
                shapes[f"step/{name}"] = ()
                shapes[f"exp_avg/{name}"] = shapes[f"exp_avg_sq/{name}"] = tuple(parameter.shape)
            moments = {
                name: tensor for name, tensor in tensors.items() if not name.startswith(_FORMER)
            }
            check_student(moments, shapes, what="'s optimizer state")
            for name, parameter in self._parameters.items():
                self._optimizer.state[parameter] = {
                    # AdamW keeps its count on the CPU.
                    "step": tensors[f"step/{name}"].to("cpu", copy=True),
                    "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device, copy=True),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device, copy=True),
                }
        self._num_bad_updates = scalars["num_bad_updates"]

    def _copy(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self._parameters.items()
        }

    def _lag_metrics(self, batch: Batch) -> dict[str, float]:
        if not (self._former and lags(batch)):
            return {}
        max_tokens = self._settings.max_tokens_per_micro_batch
        return lag_metrics(self._policy, batch, swap=self.swap, max_tokens=max_tokens)

    def _clip(self) -> float:
        """Scale the gradients down to the greatest norm allowed; return the norm they had."""
        parameters, norm = self._parameters.values(), self._settings.max_grad_norm
        found = torch.nn.utils.clip_grad_norm_(parameters, norm)
        return float(found if self._ranks is None else self._ranks.whole(found))

    def _skip(self, batch: Batch, bad: Mapping[str, float]) -> None:
        self._num_bad_updates += 1
        numbers = ", ".join(f"{name} is {value}" for name, value in sorted(bad.items()))
        reason = f"step {batch.step}: {numbers}"
        self._on_bad_numbers(batch, reason)
        if self._num_bad_updates >= MAX_BAD_UPDATES:
            raise BadNumbersError(
                f"{reason}; that is {MAX_BAD_UPDATES} updates in a row that could not be made. "
                "Their batches are kept. Lower trainer.learning_rate or set model.dtype: float32"
            )


def accumulate_gradients(
    policy: Policy,
    micro_batches: tuple[MicroBatch, ...],
    *,
    algorithm: AlgorithmSettings,
    num_actions: int,
    logprobs: dict[int, FloatArray] | None = None,
    ranks: "Ranks | None" = None,
) -> LossTotals:
    """Add the gradient of the batch's loss to the trained weights; return the batch's totals.

    `logprobs` is filled with what each action token had, by the trajectory's place in the batch.
    With `ranks` this process computes its share, and gradient and totals are those of all.
    """
    if not micro_batches:
        raise ValueError("a batch without an action token cannot be trained on")
    num_turns = 1 + max(int(micro_batch.actions.turn_index.max()) for micro_batch in micro_batches)
    shares = ((one, True) for one in micro_batches) if ranks is None else ranks.share(micro_batches)
    totals: LossTotals | None = None
    for micro_batch, counts in shares:
        on_device = micro_batch.to(policy.device)
        policy_logprobs = policy.action_logprobs(
            on_device.token_ids,
            position_ids=on_device.position_ids,
            action_index=on_device.action_index,
        )
        if not counts:
            torch.autograd.backward(policy_logprobs, torch.zeros_like(policy_logprobs))
            continue
        result = compute_objective(
            policy_logprobs,
            on_device.actions,
            settings=algorithm,
            num_actions=num_actions,
            num_turns=num_turns,
        )
        result.loss.backward()
        totals = result.totals if totals is None else totals + result.totals
        if logprobs is not None:
            values = policy_logprobs.detach().float().cpu().numpy()
            index = micro_batch.actions.trajectory_index.cpu().numpy()
            logprobs |= {int(each): values[index == each] for each in np.unique(index)}
        point("update/micro_batch")
    if ranks is not None:
        ranks.sum_gradients(policy.trained_parameters())
        totals = ranks.combine(totals, num_turns=num_turns)
        point("update/exchanged")
    assert totals is not None
    return totals


def learning_rate_factor(step: int, *, settings: TrainerSettings, num_steps: int) -> float:
    """Return what the learning rate of `step` (from 0) is multiplied by.

    It climbs in `warmup_steps` equal parts, so that no step has 0, and then stays, or falls towards
    the 0 that would come after the last step.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    length = max(1, num_steps - settings.warmup_steps)
    done = min(1.0, (step - settings.warmup_steps) / length)
    return 1.0 - done if settings.schedule == "linear" else (1.0 + cos(pi * done)) / 2


def _totals_to_metrics(totals: LossTotals, *, num_actions: int) -> dict[str, float]:
    reverse_kl = float(totals.reverse_kl) / num_actions
    metrics = {
        "reverse_kl": reverse_kl,
        "teacher_kl": reverse_kl,  # the hosted service's name for it
        "mismatch_kl": float(totals.mismatch_kl) / num_actions,
        "mean_ratio": float(totals.ratio) / num_actions,
        "trainer/loss": float(totals.loss),
        "trainer/clip_share": float(totals.num_clipped) / num_actions,
        "trainer/kl_clip_share": float(totals.num_kl_clipped) / num_actions,
        "trainer/ratio_cap_share": float(totals.num_ratio_capped) / num_actions,
        "trainer/max_advantage": float(totals.max_advantage),
        "tokens/action": float(num_actions),
    }
    by_turn = zip(totals.turn_reverse_kl.tolist(), totals.turn_actions.tolist(), strict=True)
    for turn, (turn_reverse_kl, turn_actions) in enumerate(by_turn):
        if turn_actions:
            metrics[f"reverse_kl/turn_{turn}"] = turn_reverse_kl / turn_actions
    return metrics
