"""How far apart policy, sampler and former policy are, where rollouts lag one update behind.

Rollouts of step k are then sampled by the weights before update k − 1, and the policy's distance to
their sampler has two causes, of which only the first is a fault:

    mismatch_kl    the weights that sampled, in the trainer and in the engine
    staleness_kl   the policy before update k and before update k − 1, both in the trainer

Each is the mean over sampled tokens of exp(d) − 1 − d, d being the difference of log-probabilities.
Both need the former weights, so both are taken of one trajectory in `ONE_IN`: two forward passes
over a sixteenth of a batch, some 3 % of an update.
"""

from collections.abc import Callable

import numpy as np
import torch

from rnow.learner.packing import pack
from rnow.learner.policy import Policy
from rnow.records import Batch, FloatArray

ONE_IN = 16  # trajectories


def lags(batch: Batch) -> bool:
    """Say whether older weights than those before this step sampled any of it."""
    return any(
        bool((one.trajectory.policy_version[one.trajectory.action_mask] < batch.step).any())
        for one in batch.scored
    )


def lag_metrics(
    policy: Policy, batch: Batch, *, swap: Callable[[], None], max_tokens: int
) -> dict[str, float]:
    """Return both figures of the module; `swap` exchanges the policy's weights with the former."""
    trained = [one for one in batch.scored if one.trajectory.num_actions]
    sample = Batch(step=batch.step, scored=tuple(trained[::ONE_IN]))
    now, sampler = _logprobs(policy, sample, max_tokens=max_tokens)
    swap()
    try:
        former, _ = _logprobs(policy, sample, max_tokens=max_tokens)
    finally:
        swap()
    return {"mismatch_kl": _kl(former - sampler), "staleness_kl": _kl(now - former)}


@torch.no_grad()
def _logprobs(policy: Policy, batch: Batch, *, max_tokens: int) -> tuple[FloatArray, FloatArray]:
    """Return the policy's and the sampler's log-probabilities of all sampled tokens, float64."""
    ours, theirs = [], []
    for micro_batch in pack(batch, max_tokens=max_tokens, pads=policy.pads):
        on_device = micro_batch.to(policy.device)
        logprobs = policy.action_logprobs(
            on_device.token_ids,
            position_ids=on_device.position_ids,
            action_index=on_device.action_index,
        )
        ours.append(logprobs.double().cpu().numpy())
        theirs.append(micro_batch.actions.sampler_logprobs.double().numpy())
    return np.concatenate(ours), np.concatenate(theirs)


def _kl(differences: FloatArray) -> float:
    return float(np.mean(np.expm1(differences) - differences))
