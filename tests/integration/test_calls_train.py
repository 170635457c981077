"""A student that calls its tool in its own family's form is trained on it: the call is read, the
tool runs in its process, the answer is bridged, the update moves weights.
"""

import asyncio
import io
from pathlib import Path

import pytest
from builders import real_template
from check_matrix import TOOLS, VOCABULARIES, write_files, write_model
from forced_vllm import ForcedVllm
from more_families import FAMILIES
from rich.console import Console
from safetensors.numpy import load_file
from scripted_tools import ScriptedTools
from short_runs import metrics, trajectories
from vllm_fake import serve_beside
from written_turns import answer_turn, call_turn

from rnow.commands.check.project import check_project
from rnow.commands.run import train_project
from rnow.config.load import load_config
from rnow.engines.local.engine import LocalEngine
from rnow.records import EndReason, ToolOutcome
from rnow.rollout.environment import load_chat

# One template for each form of calls.
TEMPLATES = {
    name: (real_template(f"{name}.jinja"), "<|endoftext|>")
    for name in ("qwen3", "qwen3_5_nothink", "llama3_1", "glm4moe", "gptoss", "gemma4", "lfm2_v2")
} | {
    name: (FAMILIES[name][0], "</s>" if name.startswith("Mistral") else "<|im_end|>")
    for name in ("Mistral v3", "Mistral v13", "DeepSeek V3.1", "SmolLM3")
}
TEMPLATES["Llama's python tag"] = TEMPLATES["llama3_1"]
URL = "http://clinic.test/trial"
SAID = "Acme runs the trial that this page is about."
WINDOW = 4096


def browse(url: str) -> str:
    """Read a page."""
    return url


SCHEMAS = ScriptedTools({"browse": browse}).schemas


QUICK = ("llama3_1", "Mistral v13", "gptoss")  # the others are in make test-full


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TEMPLATES],
)
def test_a_run_reads_calls_runs_tools_and_learns(tmp_path: Path, name: str) -> None:
    project = tmp_path / "project"
    write_files(project, has_tools=True)
    (project / "tools.py").write_text(TOOLS.replace("return url", f"return '{SAID}'"))
    template, eos = TEMPLATES[name]
    for seed, role in enumerate(("student", "teacher")):
        write_model(project / role, template, VOCABULARIES["same"][0], seed=seed, eos=eos)
    overrides = ["tools.workers=1", "rollout.max_tokens=400", "engine.kind=auto"]
    chat = load_chat(load_config(project).config, project, student=project / "student")
    asked = [{"role": "user", "content": "Which company?"}]
    call = call_turn(chat, asked, [("browse", {"url": URL})], SCHEMAS)
    if name == "Llama's python tag":  # which its template does not write
        call = [*chat.encode(f'<|python_tag|>browse.call(url="{URL}")<|eom_id|>')]
    answer = answer_turn(chat, asked, "Acme.", SCHEMAS)

    def turn_of(ids: object) -> list[int]:
        return answer if SAID in chat.decode(ids) else call  # type: ignore[arg-type]

    engine = LocalEngine(project / "student", window=WINDOW, request_timeout_s=600)
    with serve_beside(ForcedVllm(engine, turn_of, max_model_len=WINDOW)) as server:
        overrides += [f"engine.url={server.url}"]
        points = check_project(project, overrides).points
        wrong = [p for point in points for p in point.problems if p.severity == "error"]
        assert wrong == []
        console = Console(file=io.StringIO(), width=100)
        loaded = load_config(project, overrides=overrides)
        train_project(loaded, project, name="run", fresh=False, console=console)
    asyncio.run(engine.aclose())
    for scored in trajectories(project / "runs/run", 0):
        rolled = scored.trajectory
        (done,) = rolled.tool_calls
        assert (done.name, done.outcome, done.text) == ("browse", ToolOutcome.OK, SAID)
        assert rolled.end_reason == EndReason.ANSWER
        assert rolled.token_ids[rolled.action_mask].tolist() == call + answer
    (step,) = metrics(project / "runs/run")
    assert (step["tool/calls"], step["tool/ok"], step["rollout/trajectories"]) == (4, 4, 4)
    assert step["mismatch_kl"] < 1e-6
    weights = load_file(project / "runs/run/model/adapter_model.safetensors")
    assert all(value.any() for key, value in weights.items() if "lora_B" in key)
