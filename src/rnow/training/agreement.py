"""How far engine and trainer may be apart on the same weights.

Before the first update the engine holds the very weights that the trainer has, so what they are
apart then is noise: rounding, kernels, the order of sums. Five times that is more than noise, and
in bfloat16 still far less than what is allowed in general. It is kept with the run: a resumed one
is measured by the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rnow.errors import CheckpointError, PublicationError
from rnow.runtime.atomic_files import replace_file
from rnow.training.registry import find_metric

PROBES = ("publish/probe", "publish/decode")  # reading a fixed sequence, and sampling
_FACTOR = 5  # of the noise; one mean over a few hundred tokens is not like another
_FIRST_STEPS = 2  # in which mismatch_kl can come of nothing but a difference between the two


class Agreement:
    """The limits of one run, in nats a token."""

    def __init__(self, file: Path, *, tolerance: float, allowed: float | None) -> None:
        """`tolerance` holds always, whatever the noise; `allowed`: the user's own, None if none."""
        self._file = file
        self._tolerance = tolerance
        self._allowed = allowed
        self._noise = _read(file)

    def limit(self, probe: str) -> float:
        """Return what a probe may say: never so little that float32 could pass it by chance."""
        if probe not in self._noise:
            return self._tolerance
        return min(self._tolerance, max(_FACTOR * self._noise[probe], self._tolerance / _FACTOR))

    def describe(self, probe: str) -> str:
        """Say the limit and where it comes from."""
        if probe not in self._noise:
            return f"tolerance {self._tolerance:g}, engine.probe_tolerance"
        return f"limit {self.limit(probe):.3g}; it was {self._noise[probe]:.3g} at version 0"

    def keep_noise(self, figures: Mapping[str, float]) -> None:
        """Keep what version 0 was apart, once a run."""
        if not self._noise:
            self._noise = dict(figures)
            replace_file(self._file, json.dumps(self._noise, indent=1) + "\n")

    def check_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Stop a run whose first rollouts show that engine and trainer are two policies.

        Later a great mismatch is an alarm: by then it may come of what was learned.
        """
        health = find_metric("mismatch_kl")
        assert health is not None
        assert health.most is not None
        limit = max(health.most, self._allowed or 0.0)
        if step >= _FIRST_STEPS or figures.get("trainer/skipped"):
            return
        mismatch = figures["mismatch_kl"]
        if not mismatch <= limit:
            raise PublicationError(
                f"mismatch_kl of step {step} is {mismatch:.3g}, and healthy is at most {limit:g}: "
                "engine and trainer give sampled tokens different log-probabilities, so the run "
                "would train on a policy that is not its own. Compare model.dtype and engine.dtype "
                "(float32 in both has least of it) and look at engine.args; with "
                "engine.probe_tolerance above that number the run goes on as it is"
            )


def _read(file: Path) -> dict[str, float]:
    try:
        noise = json.loads(file.read_text(encoding="utf-8"))
        return {probe: float(noise[probe]) for probe in PROBES}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; delete it") from error
