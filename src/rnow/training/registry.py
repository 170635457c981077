"""Every number of metrics.jsonl: what it is, its unit, its healthy range, what to do outside it.

docs/metrics.md is made from this list, and `rnow report` draws with it. A row whose name ends in
`*` is a family: one row for all names that begin so. What a tools.py counts under names of its own
stands in no row, and is right so; a name that rnow itself writes without a row fails the tests.
"""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row. Metric(name="tokens/drift", unit="tokens", what="…", most=0.0, remedy="…")"""

    name: str  # in metrics.jsonl; with `*` at its end, the beginning of several
    unit: str
    what: str
    least: float | None = None  # the healthy range; None: no bound on this side
    most: float | None = None
    remedy: str = ""  # what to do outside the range

    @property
    def healthy(self) -> str:
        """Say the range in words: "0", "at most 0.01", "0.5 to 2", "" where there is none."""
        if self.least is not None and self.most is not None:
            return (
                f"{self.least:g}" if self.least == self.most else f"{self.least:g} to {self.most:g}"
            )
        if self.most is not None:
            return f"at most {self.most:g}"
        return "" if self.least is None else f"at least {self.least:g}"

    def is_healthy(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


def _metric(
    name: str,
    unit: str,
    what: str,
    healthy: tuple[float | None, float | None] = (None, None),
    remedy: str = "",
) -> Metric:
    least, most = healthy
    return Metric(name=name, unit=unit, what=what, least=least, most=most, remedy=remedy)


_NONE = (0.0, 0.0)
_LOGS = "read logs/tools.log in the run's folder, and try the tool with rnow test"
_LOWER_RATE = "lower trainer.learning_rate"
_DTYPES = "compare model.dtype and engine.dtype; float32 in both has least of it"

METRICS = (
    _metric("step", "updates", "optimizer updates that were done before this step"),
    _metric("reverse_kl", "nats/token", "what the student pays: its log-probability of what it "
            "sampled less the teacher's; it should fall from step to step", (0.0, None),
            "below 0 for several steps, trainer and teacher disagree on what they score: compare "
            "their tokenizers and chat templates"),
    _metric("reverse_kl/turn_*", "nats/token", "the same over the tokens of one turn, from 0"),
    _metric("reverse_kl/within", "nats/token", "half of its interval at 95 %, over prompts"),
    _metric("teacher_kl", "nats/token", "reverse_kl under the hosted service's name"),
    _metric("mismatch_kl", "nats/token", "how far engine and trainer are apart on the same weights",
            (None, 0.01), f"{_DTYPES}; beyond it in steps 0 and 1 the run stops, later above 0.015 "
            "an alarm says so"),
    _metric("staleness_kl", "nats/token", "how far the trainer is from the weights, one update "
            "older, that sampled the step: trainer.max_policy_lag 1, one rollout in 16",
            (None, 0.05), "lower trainer.learning_rate, or set trainer.max_policy_lag: 0"),
    _metric("mean_ratio", "ratio", "mean of trainer to sampler probability of a sampled token",
            (0.9, 1.1), _DTYPES),
    _metric("trainer/loss", "nats/token", "what the update minimized; its size says little"),
    _metric("trainer/clip_share", "share", "tokens whose gradient PPO's clip took away", (0.0, 0.1),
            f"{_LOWER_RATE}, or raise algorithm.clip_low and clip_high"),
    _metric("trainer/kl_clip_share", "share", "tokens whose own gap was beyond algorithm.kl_clip",
            (0.0, 0.05), "look at the worst gaps in rnow report: often a template that differs"),
    _metric("trainer/ratio_cap_share", "share", "tokens whose ratio was above algorithm.ratio_max",
            (0.0, 0.01), _DTYPES),
    _metric("trainer/max_advantage", "nats", "the greatest advantage of a token, without sign"),
    _metric("trainer/grad_norm", "norm", "of the gradient, before trainer.max_grad_norm clips it"),
    _metric("trainer/learning_rate", "1", "of this update, after warm-up and schedule"),
    _metric("trainer/num_micro_batches", "count", "forward passes of the update"),
    _metric("trainer/skipped", "0 or 1", "1 where numbers were not finite and no weight moved",
            _NONE, f"{_LOWER_RATE} or set model.dtype: float32; rnow replay repeats the update"),
    _metric("tokens/action", "tokens", "sampled by the student in this step", (1.0, None),
            "without any, nothing can be learned: look at the transcripts"),
    _metric("tokens/total", "tokens", "with prompts and what tools said"),
    _metric("tokens/drift", "tokens", "ids that the engine did not receive as the ledger has them",
            _NONE, "stop: nothing that is learned from such a step can be trusted"),
    _metric("tokens_per_s", "tokens/s", "sampled tokens over the step's whole time"),
    _metric("rollout/trajectories", "count", "rollouts that were scored"),
    _metric("rollout/reused", "count", "taken from the journal of an interrupted attempt"),
    _metric("rollout/overlapped_s", "s", "of rollouts and scoring, what went by while the loop did "
            "something else: trainer.max_policy_lag"),
    _metric("rollout/dropped", "count", "lost, each after two tries", _NONE,
            "controller.log names the reasons"),
    _metric("rollout/turns", "turns", "mean number of generations of a rollout"),
    _metric("rollout/repetition", "share", "4-grams of sampled tokens that stood in the same turn "
            "before, mean of rollouts", (None, 0.5), f"the student goes in circles: {_LOWER_RATE}, "
            "and look at the transcripts, most repetition first"),
    _metric("rollout/graded", "count", "rollouts whose answer a grader judged"),
    _metric("rollout/right", "share", "of those, right answers; sampled, so below eval/accuracy"),
    _metric("rollout/copied", "count", "rollouts that write out ten words in a row of their "
            "entry's metadata which they were not shown", _NONE,
            "take it out of the entries, and see what tools.py reads"),
    _metric("rollout/action_tokens", "tokens", "mean sampled by a rollout; a growth to several "
            "times its length is how a collapse begins"),
    _metric("rollout/end_answer", "count", "ended with a turn that calls no tool"),
    _metric("rollout/end_max_turns", "count", "ended at rollout.max_turns", (None, None),
            "if it is most of them: raise rollout.max_turns"),
    _metric("rollout/end_max_tokens", "count", "cut by rollout.max_tokens", (None, None),
            "if it is many: raise rollout.max_tokens"),
    _metric("rollout/end_request_timeout", "count", "cut by engine.request_timeout_s; what was "
            "sampled by then is kept", _NONE, "lower rollout.max_tokens or rollout.concurrency, or "
            "raise engine.request_timeout_s"),
    _metric("rollout/end_context_full", "count", "cut by rollout.max_context_window", (None, None),
            "if it is many: raise rollout.max_context_window or lower rollout.max_tool_response"),
    _metric("rollout/end_timeout", "count", "cut by rollout.rollout_timeout", _NONE,
            "raise rollout.rollout_timeout, or lower rollout.concurrency"),
    _metric("rollout/end_*", "count", "ended for another reason; each has its name in "
            "`rnow.records.EndReason`"),
    _metric("tool/offered", "count", "tools that tools.py and MCP servers have"),
    _metric("tool/calls", "count", "tool calls of the step"),
    _metric("tool/ok", "count", "calls that were answered"),
    _metric("tool/model_error", "count", "calls that were malformed or had wrong arguments",
            (None, None), "if it rises: look at the transcripts; above 30 % an alarm says so"),
    _metric("tool/error", "count", "calls in which the tool raised, or its worker died", _NONE,
            _LOGS),
    _metric("tool/timeout", "count", "calls that passed their deadline", _NONE,
            "raise rollout.tool_timeout, or the tool's own"),
    _metric("tool/truncated", "count", "results that were cut to rollout.max_tool_response"),
    _metric("tool/seconds", "s", "of all calls, one after the other"),
    _metric("tool/restarts", "count, whole run", "tool workers that had to be replaced", _NONE,
            _LOGS),
    _metric("browser/fetched", "count", "pages that came from their site"),
    _metric("browser/stored", "count", "pages that came from the page store"),
    _metric("browser/shared", "count", "pages that this process had already"),
    _metric("browser/restarts", "count", "Chromiums that ended and were started again", _NONE,
            _LOGS),
    _metric("browser/local_requests", "count, whole run", "answered by sites that rnow serves"),
    _metric("browser/error_*", "count", "reads that gave no page, by the code that the model was "
            "told", (None, None), "docs/browsing.md says what each code means"),
    _metric("teacher/scored", "count", "trajectories that the teacher scored"),
    _metric("teacher/dropped", "count", "trajectories that it could not score", _NONE,
            "controller.log names the reasons"),
    _metric("teacher/wait_s", "s", "from the last rollout's end until the last score", (None, None),
            "if it is much of a step: raise teacher.concurrency or teacher.replicas"),
    _metric("teacher/gain", "share", "the teacher's right answers less the student's, by "
            "the graded rollouts, each weighed by how likely the teacher finds it; none where few "
            "have most of the weight"),
    _metric("teacher/gain_within", "share", "half of its interval at 95 %, over prompts"),
    _metric("publish/probe", "nats/token", "engine and trainer apart on a fixed sequence",
            (0.0, 0.1), "above engine.probe_tolerance the run stops, and says why"),
    _metric("publish/decode", "nats/token", "engine and trainer apart on what the engine samples "
            "for a probe, one at a time or eight", (0.0, 0.1), "the run stops, and says why"),
    _metric("eval/accuracy", "share", "of held-out prompts, on steps that evaluate"),
    _metric("eval/format_ok", "share", "of held-out answers that could be read", (0.9, 1.0),
            "look at what the student answers: rnow test"),
    _metric("eval/failed", "count", "held-out rollouts that failed; not among the answers", _NONE,
            "controller.log names the reasons"),
    _metric("eval/ungraded", "count", "held-out answers whose grader gave no verdict", _NONE,
            "controller.log names the reasons"),
    _metric("time/step", "s", "the whole step"),
    _metric("time/rollout", "s", "until the last rollout ended, less rollout/overlapped_s"),
    _metric("time/teacher", "s", "from there until the last score, as far as it was waited for"),
    _metric("time/*", "s", "another stage of the step: publish, eval, health, update"),
)  # fmt: skip


@cache
def find_metric(name: str) -> Metric | None:
    """Return the row of a name; of several families the one that says most of it."""
    rows = {row.name: row for row in METRICS}
    families = [row for row in METRICS if row.name[-1] == "*" and name.startswith(row.name[:-1])]
    longest = max(families, key=lambda row: len(row.name), default=None)
    return rows.get(name, longest)
