"""config.yml: what loads, what is translated, and every message as the user reads it."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from rnow.config.cautions import few_rollouts, long_generations
from rnow.config.load import (
    LoadedConfig,
    find_tools_file,
    load_config,
    require_distill,
)
from rnow.errors import ConfigError, Problem

MINIMAL = """\
data: {batch_size: 16}
model: {path: student}
teacher: {path: teacher}
trainer: {num_epochs: 3}
"""


@pytest.fixture(autouse=True)
def in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the file as it was given: from inside the project that is config.yml."""
    monkeypatch.chdir(tmp_path)


def load(text: str, *, overrides: Sequence[str] = ()) -> LoadedConfig:
    Path("config.yml").write_text(dedent(text), encoding="utf-8")
    return load_config(Path(), overrides=overrides)


def error_of(text: str, *, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, overrides=overrides)
    return str(caught.value)


def with_setting(setting: str) -> tuple[str, int]:
    """Return a file that is right but for one setting ("trainer.lr: 3"), and the line of that."""
    key, _, value = setting.partition(": ")
    section, _, name = key.rpartition(".")
    rows = {
        "data": ["  batch_size: 16"],
        "model": ["  path: student"],
        "teacher": ["  path: teacher"],
        "trainer": ["  num_epochs: 3"],
    }
    row = f"  {name}: {value}" if section else setting
    text = "" if section else f"{row}\n"
    if section:
        rows.setdefault(section, []).append(row)
    for header, inner in rows.items():
        text += "\n".join([f"{header}:", *inner, ""])
    return text, text.splitlines().index(row) + 1


# --- what loads


def test_a_minimal_file_loads_with_defaults_and_says_nothing() -> None:
    loaded = load(MINIMAL)
    assert loaded.notices == ()
    assert loaded.file == Path("config.yml")
    assert loaded.config.algorithm.kl_penalty_coef == 1.0
    assert loaded.config.rollout.max_turns == 1
    assert loaded.lines == {
        "data": 1,
        "data.batch_size": 1,
        "model": 2,
        "model.path": 2,
        "teacher": 3,
        "teacher.path": 3,
        "trainer": 4,
        "trainer.num_epochs": 4,
    }


def test_a_section_without_keys_is_its_defaults() -> None:
    loaded = load(MINIMAL + "rollout:\n  # max_turns: 4\nbrowser:\nresources:\n")
    assert loaded.config == load(MINIMAL).config


def test_a_learning_rate_that_is_not_said_is_the_tuning_s() -> None:
    full = MINIMAL + "algorithm: {kl_clip: 10}\n"
    full = full.replace("path: student", "path: student, tuning: full")
    assert load(MINIMAL).config.trainer.learning_rate == 1e-4
    assert load(full).config.trainer.learning_rate == 1e-5
    said = full.replace("num_epochs: 3", "num_epochs: 3, learning_rate: 2e-4")
    assert load(said).config.trainer.learning_rate == 2e-4


def test_a_step_of_few_rollouts_is_advised_against() -> None:
    few = load(MINIMAL.replace("batch_size: 16", "batch_size: 15"))
    assert few.notices == ()  # it is said by who checks or runs
    assert few_rollouts(few.config) == (
        "a step has 60 rollouts (data.batch_size x data.group_size); published runs have 64 to "
        "2048, most of them of different prompts, and fewer make steps noisy: docs/recipes.md"
    )
    assert few_rollouts(load(MINIMAL).config) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ((), "rollout.max_tokens is not set: 32768 tokens a generation, which take 1638 s at 0.05 "
         "s a token, and engine.request_timeout_s is 600: a runaway holds up its whole step until "
         "it is cut there. Set rollout.max_tokens to 12000 or less"),
        (("rollout.max_tokens=16384",), "rollout.max_tokens is 16384 "
         "tokens a generation, which take 819 s at 0.05 s a token, and engine.request_timeout_s is "
         "600: a runaway holds up its whole step until it is cut there. Set rollout.max_tokens to "
         "12000 or less"),
        (("rollout.max_tokens=12000",), None),
        (("rollout.max_context_window=4096",), None),
        (("engine.request_timeout_s=2000",), None),
        (("engine.kind=local",), None),
    ],
)  # fmt: skip
def test_a_cap_that_a_request_cannot_reach_in_time_is_advised_against(
    changes: tuple[str, ...], says: str | None
) -> None:
    assert long_generations(load(MINIMAL, overrides=changes).config) == says


def test_numbers_may_be_written_as_text() -> None:
    text = MINIMAL.replace("batch_size: 16", 'batch_size: "16"').replace(
        "num_epochs: 3", "num_epochs: 3, learning_rate: 5e-5"
    )
    config = load(text).config
    assert (config.data.batch_size, config.trainer.learning_rate) == (16, 5e-5)


def test_json_is_read_where_there_is_no_yaml() -> None:
    Path("config.json").write_text(
        '{\n\t"data": {"batch_size": 4},\n\t"model": {"path": "student"},\n'
        '\t"teacher": {"path": "teacher"},\n\t"trainer": {"num_epochs": 3, "learning_rate": '
        "1e-5}\n}"
    )
    loaded = load_config(Path())
    assert (loaded.file, loaded.lines["trainer"]) == (Path("config.json"), 5)
    assert loaded.config.trainer.learning_rate == 1e-5


def test_yaml_wins_over_json() -> None:
    Path("config.json").write_text("{}")
    assert load(MINIMAL).file == Path("config.yml")


def test_a_byte_order_mark_and_windows_line_ends_are_read() -> None:
    Path("config.yml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(Path()).lines["trainer.num_epochs"] == 4


def test_merged_mappings_give_way_to_what_is_written_beside_them() -> None:
    loaded = load(
        """\
        data: {batch_size: 16}
        model: &same
          path: student
          dtype: float32
        teacher:
          <<: *same
          path: teacher
        trainer: {num_epochs: 3}
        """
    )
    assert loaded.config.teacher is not None
    assert (loaded.config.teacher.path, loaded.config.teacher.dtype) == ("teacher", "float32")


def test_what_an_anchor_names_is_translated_in_each_of_its_places_alone() -> None:
    loaded = load(
        """\
        data: {batch_size: 4}
        model: &same {path: student, dtype: float32}
        teacher: *same
        trainer: {num_epochs: 3}
        """,
        overrides=["teacher.dtype=bfloat16"],
    )
    assert (loaded.config.model.dtype, require_distill(loaded).dtype) == (
        "float32",
        "bfloat16",
    )


def test_of_several_merged_mappings_the_first_wins() -> None:
    loaded = load(
        """\
        data: {batch_size: 16}
        model: &one {path: student, dtype: float32}
        teacher:
          <<: [*one, &two {path: teacher, dtype: bfloat16}]
        trainer: {num_epochs: 3}
        """
    )
    teacher = require_distill(loaded)
    assert (teacher.path, teacher.dtype) == ("student", "float32")


def test_null_rollout_timeout_is_the_hour_that_always_applies() -> None:
    assert load(MINIMAL + "rollout: {rollout_timeout: null}").config.rollout.rollout_timeout == 3600


def test_the_reference_project_loads() -> None:
    root = Path(__file__).resolve().parents[3]
    assert load_config(root).config.dataset_type == "distill"


# --- files that cannot be read


def test_no_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Path("here"))
    message = "No config.yml or config.json found in here; rnow init makes a project"
    assert str(caught.value) == message
    assert caught.value.problems == (Problem(file="here", line=None, key=None, message=message),)


def test_a_file_with_the_other_ending_is_pointed_out() -> None:
    Path("config.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(Path())
    assert str(caught.value) == (
        "No config.yml or config.json found in .; rename config.yaml to config.yml"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.yml: is empty; docs/configuration.md has an example"),
        ("# nothing\n", "config.yml: is empty; docs/configuration.md has an example"),
        ("- a\n- b\n", "config.yml:1: must be a mapping of settings, not ['a', 'b']"),
        (
            "data: {batch_size: 16\nmodel: x\n",
            "config.yml:2: is not valid YAML: expected ',' or '}', but got ':'",
        ),
        (
            "seed: 1\n\tdata: 2\n",
            "config.yml:2: is not valid YAML: found character '\\t' that cannot start any token",
        ),
        (
            "seed: 1\n---\nseed: 2\n",
            "config.yml:2: is not valid YAML: but found another document",
        ),
        (
            "seed: 1\ndata: !!python/tuple [1]\n",
            "config.yml:2: is not valid YAML: "
            "could not determine a constructor for the tag 'tag:yaml.org,2002:python/tuple'",
        ),
        (
            "seed: !secret x\n",
            "config.yml:1: is not valid YAML: "
            "could not determine a constructor for the tag '!secret'",
        ),
        ("seed: 2020-13-45\n", "config.yml:1: is not valid YAML: month must be in 1..12"),
        (
            "a: &a\n  b: *a\n",
            "config.yml:1: is not valid YAML: found unconstructable recursive node",
        ),
        ("[1, 2]: 3\n", "config.yml:1: is not valid YAML: a key must be one word"),
        (
            "data:\n  <<: 3\n",
            "config.yml:2: is not valid YAML: expected a mapping or list of mappings for merging, "
            "but found scalar",
        ),
        (
            "a: " + "[" * 3000 + "]" * 3000,
            "config.yml: is nested too deeply to be a config.yml",
        ),
        (
            "a0: &a0 [1]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
            "config.yml:1: is not valid YAML: more than 100000 values, anchors written out",
        ),
    ],
)
def test_unreadable_files(text: str, message: str) -> None:
    assert error_of(text) == message


def test_bytes_that_are_no_text() -> None:
    Path("config.yml").write_bytes(b"seed: 1\nmodel: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Path())
    assert str(caught.value) == "config.yml:2: is not UTF-8 text (byte 0xff)"


# --- wrong keys and values


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "algorithm.kl_penalty_coeff: 1",
            "algorithm.kl_penalty_coeff is not a setting; did you mean kl_penalty_coef?",
        ),
        ("trainer.max_turns: 3", "trainer.max_turns is not a setting; it belongs under rollout"),
        (
            "algorithm.dtype: auto",
            "algorithm.dtype is not a setting; it belongs under model, teacher or engine",
        ),
        ("rollout.seed: 3", "rollout.seed is not a setting; it belongs at the top of the file"),
        ("max_turns: 3", "max_turns is not a setting; it belongs under rollout"),
        ("trainer.lr: 3", "trainer.lr is not a setting; did you mean trainer.learning_rate?"),
        (
            "rollout.learning_rates: 3",
            "rollout.learning_rates is not a setting; did you mean trainer.learning_rate?",
        ),
        ("rollouts: {}", "rollouts is not a setting; did you mean rollout?"),
        (
            "tools.xyz: 3",
            "tools.xyz is not a setting; tools has workers, concurrency, env",
        ),
        (
            "xyz: 3",
            "xyz is not a setting; the top of the file has seed, dataset_type, data, model, "
            "teacher, "
            "algorithm, rollout, trainer, engine, tools, browser, resources",
        ),
        (
            "data.group_size: many",
            "data.group_size is 'many'; it must be a whole number of at least 1",
        ),
        ("data.group_size: 0", "data.group_size is 0; it must be a whole number of at least 1"),
        ("data.group_size: 1.5", "data.group_size is 1.5; it must be a whole number of at least 1"),
        (
            "data.group_size: [1, 2]",
            "data.group_size is [1, 2]; it must be a whole number of at least 1",
        ),
        ("model.tuning: qlora", "model.tuning is 'qlora'; it must be one of lora, full"),
        (
            "model.dtype: float16",
            "model.dtype is 'float16'; it must be one of auto, bfloat16, float32",
        ),
        (
            "model.qlora_alpha: 0",
            "model.qlora_alpha is 0; it must be a whole number of at least 1, or null",
        ),
        (
            "algorithm.loss_fn: grpo",
            "algorithm.loss_fn is 'grpo'; it must be one of ppo, importance_sampling",
        ),
        (
            "algorithm.kl_discount: 1.5",
            "algorithm.kl_discount is 1.5; it must be a number from 0 to 1",
        ),
        (
            "algorithm.kl_penalty_coef: -0.1",
            "algorithm.kl_penalty_coef is -0.1; it must be a number of at least 0",
        ),
        ("rollout.rollout_timeout: 0", "rollout.rollout_timeout is 0; it must be a number above 0"),
        (
            "trainer.save_step: false",
            "trainer.save_step is false; save_step cannot be 0. Use -1 to save only at the end, "
            "or a positive number for periodic saves.",
        ),
        ("algorithm.kl_clip: .nan", "algorithm.kl_clip is nan; it must be a number above 0"),
        ("algorithm.kl_clip: .inf", "algorithm.kl_clip is inf; it must be a number above 0"),
        (
            "trainer.learning_rate: null",
            "trainer.learning_rate is null; it must be a number above 0",
        ),
        (
            "trainer.activation_checkpointing: maybe",
            "trainer.activation_checkpointing is 'maybe'; it must be auto, or true or false",
        ),
        (
            "trainer.save_step: -2",
            "trainer.save_step is -2; it must be a whole number of at least -1",
        ),
        (
            "rollout.reasoning_mode: off",
            "rollout.reasoning_mode is false; it must be one of disabled, none, minimal, low, "
            "medium, "
            "high, xhigh, or null",
        ),
        ("tools.env: KEY", "tools.env is 'KEY'; it must be a list of texts"),
        (
            "tools.env: [A, B=1]",
            "tools.env is ['A', 'B=1']; B=1 is not the name of an environment variable",
        ),
        (
            'browser.allow_hosts: ["https://fda.gov/"]',
            "browser.allow_hosts is ['https://fda.gov/']; https://fda.gov/ is not a host name: "
            "write it without scheme, port and path",
        ),
        (
            "browser.local_sites: {a.test: 3}",
            "browser.local_sites is {'a.test': 3}; it must be a mapping of texts to texts",
        ),
        (
            "browser.local_sites: {a.test: pages}",
            "browser.local_sites.a.test is 'pages', which is neither a folder in . nor a server of "
            "your own as 127.0.0.1:PORT",
        ),
        (
            "rollout: 3",
            "rollout is 3; it must be a section with settings: max_turns, mcp_url, "
            "mcp_session, max_tokens, "
            "max_context_window, termination_policy, tool_timeout, max_tool_response, "
            "max_tool_response_chars, rollout_timeout, reward_timeout, include_thinking, "
            "concurrency, reasoning_mode",
        ),
        (
            "engine.kind: sglang",
            "engine.kind is 'sglang'; it must be one of auto, vllm, local",
        ),
        (
            "engine.gpu_memory_utilization: 1",
            "engine.gpu_memory_utilization is 1; it must be a number above 0 and below 1, or null",
        ),
        (
            "engine.url: 127.0.0.1:8000",
            "engine.url is '127.0.0.1:8000'; 127.0.0.1:8000 is not the address of a server, as "
            "http://127.0.0.1:8000",
        ),
        (
            "teacher.url: []",
            "teacher.url is []; the list is empty; name a server, or write null",
        ),
        (
            "engine: {url: 'http://a:1', kind: local}",
            "engine.url is set, and engine.kind says local; remove one of the two",
        ),
        (
            "engine: {url: 'http://a:1', replicas: 2}",
            "engine.replicas is for servers that rnow starts; engine.url names your own",
        ),
        (
            "resources: {student: 1}",
            "resources.student is 1; it must be a section with settings: gpus",
        ),
        (
            "rollout.temperature: 0.7",
            "rollout.temperature is 0.7; remove it: rollouts are sampled at temperature 1, "
            "top-p 1 and "
            "without top-k, because the log-probabilities of student and teacher are compared at "
            "temperature 1",
        ),
        (
            "top_p: 0.9",
            "top_p is 0.9; remove it: rollouts are sampled at temperature 1, top-p 1 and "
            "without top-k, because the log-probabilities of student and teacher are compared at "
            "temperature 1",
        ),
        (
            "rollout.thinking_mode: deep",
            "rollout.thinking_mode is 'deep'; use rollout.reasoning_mode "
            "(the old values were disabled, easy, medium, hard)",
        ),
        (
            "dataset_type: ppo",
            "dataset_type is 'ppo'; it must be one of distill, rl, sft, midtrain",
        ),
    ],
)
def test_wrong_settings(line: str, message: str) -> None:
    text, number = with_setting(line)
    assert error_of(text) == f"config.yml:{number}: {message}"


def test_ranks_of_the_trainer_and_its_gpus_are_one_number() -> None:
    text = MINIMAL.replace("num_epochs: 3", "num_epochs: 3, num_ranks: 2")
    assert text != MINIMAL
    assert error_of(text + "resources: {trainer: {gpus: 4}}\n").partition(": ")[2] == (
        "trainer.num_ranks is 2, and resources.trainer.gpus is 4; a rank has one GPU: leave one "
        "of the two out"
    )
    load(text + "resources: {trainer: {gpus: 2}}\n")


def test_a_model_that_is_no_section() -> None:
    assert error_of(MINIMAL.replace("model: {path: student}", "model: Qwen/Qwen3-8B")) == (
        "config.yml:2: model is 'Qwen/Qwen3-8B'; it must be a section: model: {path: Qwen/Qwen3-8B}"
    )


def test_a_list_of_models_is_refused_with_the_way_to_run_them() -> None:
    assert error_of(MINIMAL.replace("path: student", "path: [a/b, c/d]")) == (
        "config.yml:2: model.path is a list of models, and a run trains one; "
        "start rnow run once for each: rnow run model.path=a/b"
    )


def test_an_empty_path_is_no_path() -> None:
    assert error_of(MINIMAL.replace("path: student", 'path: ""')) == (
        "config.yml:2: model.path is ''; it must be a text that is not empty"
    )


def test_missing_settings_are_named_at_their_section() -> None:
    assert error_of("teacher: {}\ndata:\n  group_size: 4\n") == "\n".join(
        [
            "config.yml:1: teacher.path is missing; it must be a text that is not empty",
            "config.yml:2: data.batch_size is missing; it must be a whole number of at least 1",
            "config.yml: model.path is missing; it must be a text that is not empty",
            "config.yml: trainer.num_epochs is missing; it must be a whole number of at least 1",
        ]
    )


def test_a_key_that_stands_twice_is_an_error() -> None:
    assert error_of(MINIMAL + "seed: 1\nrollout:\n  max_turns: 1\n  max_turns: 1\nseed: 1\n") == (
        "config.yml:8: rollout.max_turns is set twice, first in line 7; keep one of them\n"
        "config.yml:9: seed is set twice, first in line 5; keep one of them"
    )


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        (
            "rollout: {rollout_timeout: 600}",
            "rollout.rollout_timeout is 600 s, not above engine.request_timeout_s (600 s): "
            "rollouts end before a server that hangs is noticed",
        ),
        (
            "engine: {kind: local}\nteacher.quantization: fp8",
            "teacher.quantization has no effect: it is for a vLLM server that rnow starts",
        ),
    ],
)
def test_engine_settings_without_the_effect_they_seem_to_have(lines: str, warning: str) -> None:
    overrides = [line.replace(": ", "=", 1) for line in lines.splitlines()]
    (problem,) = load(MINIMAL, overrides=overrides).warnings
    assert (problem.message, problem.severity) == (warning, "warning")


def test_all_errors_of_a_file_are_shown_at_once_in_its_order() -> None:
    with pytest.raises(ConfigError) as caught:
        load("project_id: x\n" + MINIMAL + "sed: 1\nengine: {kind: vlm}\nseed: x\n")
    assert str(caught.value) == "\n".join(
        [
            "config.yml:6: sed is not a setting; did you mean seed?",
            "config.yml:7: engine.kind is 'vlm'; it must be one of auto, vllm, local",
            "config.yml:8: seed is 'x'; it must be a whole number of at least 0",
        ]
    )
    assert [(p.line, p.key, p.severity) for p in caught.value.problems] == [
        (1, "project_id", "warning"),
        (6, "sed", "error"),
        (7, "engine.kind", "error"),
        (8, "seed", "error"),
    ]


def test_long_values_are_cut_in_messages() -> None:
    assert error_of(MINIMAL + f"seed: {'x' * 100}\n") == (
        f"config.yml:5: seed is '{'x' * 48}…; it must be a whole number of at least 0"
    )


def test_rollouts_beside_an_update_need_an_adapter() -> None:
    lagging = MINIMAL.replace("epochs: 3", "epochs: 3, max_policy_lag: 1")
    assert load(lagging).config.trainer.max_policy_lag == 1
    assert error_of(lagging.replace("path: student", "path: student, tuning: full")) == (
        "config.yml:4: trainer.max_policy_lag 1 needs model.tuning: lora: all weights are replaced "
        "in place, so nothing can be sampled from the former ones meanwhile; set one of the two"
    )


# --- rules between dataset_type and sections


@pytest.mark.parametrize("dataset_type", ["", "dataset_type: distill\n"])
def test_distill_needs_a_teacher(dataset_type: str) -> None:
    place = "config.yml:1" if dataset_type else "config.yml"
    text = dataset_type + MINIMAL.replace("teacher: {path: teacher}\n", "")
    assert error_of(text) == (
        f"{place}: dataset_type: distill requires 'teacher' section; add teacher: {{path: MODEL}}"
    )


@pytest.mark.parametrize("dataset_type", ["rl", "sft", "midtrain"])
def test_only_distill_has_a_teacher(dataset_type: str) -> None:
    assert error_of(MINIMAL + f"dataset_type: {dataset_type}") == (
        "config.yml:3: 'teacher' is only available for dataset_type: distill; "
        f"remove the section, or dataset_type: {dataset_type}"
    )


@pytest.mark.parametrize("dataset_type", ["rl", "sft", "midtrain"])
def test_other_kinds_of_training_load_and_are_not_trained(dataset_type: str) -> None:
    text = MINIMAL.replace("teacher: {path: teacher}", f"dataset_type: {dataset_type}")
    loaded = load(text)
    assert loaded.notices == ()
    with pytest.raises(ConfigError) as caught:
        require_distill(loaded)
    assert str(caught.value) == (
        f"config.yml:3: dataset_type {dataset_type} is read and checked, but not trained in this "
        "version; only distill is. To train this project so: dataset_type: distill, and a "
        "teacher: {path: MODEL}"
    )


def test_distill_gives_its_teacher() -> None:
    assert require_distill(load(MINIMAL)).path == "teacher"


@pytest.mark.parametrize("dataset_type", ["sft", "midtrain"])
def test_sections_about_rollouts_are_ignored_without_rollouts(dataset_type: str) -> None:
    text = MINIMAL.replace("teacher: {path: teacher}", f"dataset_type: {dataset_type}")
    assert load(text + "algorithm: {loss_fn: ppo}\nrollout: {max_turns: 2}\n").notices == (
        f"config.yml:5: algorithm is ignored: dataset_type {dataset_type} makes no rollouts",
        f"config.yml:6: rollout is ignored: dataset_type {dataset_type} makes no rollouts",
    )


def test_turns_without_tools_are_an_error() -> None:
    loaded = load(MINIMAL + "rollout: {max_turns: 10}\n")
    with pytest.raises(ConfigError) as caught:
        find_tools_file(loaded, directory=Path())
    assert str(caught.value) == (
        "config.yml:5: rollout.max_turns is 10, but there is no tools.py in .; "
        "write one, name an MCP server in rollout.mcp_url, or set rollout.max_turns to 1"
    )
    Path("env.py").write_text("")
    with pytest.raises(ConfigError) as caught:
        find_tools_file(loaded, directory=Path())
    assert str(caught.value) == (
        "config.yml:5: rollout.max_turns is 10, but there is no tools.py in .; "
        "env.py is its old name: rename it to tools.py"
    )


def test_tools_are_found_and_one_turn_needs_none() -> None:
    assert find_tools_file(load(MINIMAL), directory=Path()) is None
    served = load(MINIMAL + "rollout: {max_turns: 10, mcp_url: http://127.0.0.1:8931}\n")
    assert find_tools_file(served, directory=Path()) is None
    Path("tools.py").write_text("")
    loaded = load(MINIMAL + "rollout: {max_turns: 10}\n")
    assert find_tools_file(loaded, directory=Path()) == Path("tools.py")


# --- what loads with a word


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("project_id: 7", "project_id is ignored: runs are local"),
        ("description: x", "description is ignored: runs are local"),
        ("organization_id: x", "organization_id is ignored: runs are local"),
        ("dataset_id: x", "dataset_id is ignored: the prompts are the file data.train_file"),
        ("dataset_name: x", "dataset_name is ignored: the prompts are the file data.train_file"),
        (
            "evals: [{eval_id: x, step: 10}]",
            "evals is ignored: trainer.eval_step and rnow eval evaluate on data.val_file",
        ),
        (
            "data.val_split: 0.1",
            "data.val_split is ignored: data.val_file names a file of held-out prompts",
        ),
        ("model.name: x", "model.name is ignored: rnow run --name names a run and its model"),
        ("model.description: x", "model.description is ignored: runs are local"),
        (
            "model._resolvedCheckpointPath: x",
            "model._resolvedCheckpointPath is ignored: runs are local",
        ),
        (
            "model._resolvedSamplerCheckpointPath: x",
            "model._resolvedSamplerCheckpointPath is ignored: runs are local",
        ),
        ("model._baseModelName: x", "model._baseModelName is ignored: runs are local"),
        (
            "teacher.agentic: true",
            "teacher.agentic is ignored: a run uses tools exactly when tools.py or "
            "rollout.mcp_url is there",
        ),
        (
            "trainer.max_billing: 5",
            "trainer.max_billing is ignored: runs are local and cost nothing; "
            "trainer.max_time_s limits a run",
        ),
        ("rollout.temperature: 1.0", "rollout.temperature is ignored: it is always so"),
        ("rollout.top_k: -1", "rollout.top_k is ignored: it is always so"),
        (
            "data.batch_size: 64",
            "data.batch_size is 64; the hosted service takes 32 at most, "
            "here memory and time are the limits",
        ),
        (
            "data.group_size: 65",
            "data.group_size is 65; the hosted service takes 64 at most, "
            "here memory and time are the limits",
        ),
        (
            "model.qlora_rank: 256",
            "model.qlora_rank is 256; the hosted service takes 128 at most, "
            "here memory and time are the limits",
        ),
        (
            "algorithm.adv_estimator: gae",
            "algorithm.adv_estimator gae has no effect: distillation has no rewards",
        ),
        (
            "trainer.eval_step: 50",
            "trainer.eval_step is 50, but there is no val.jsonl: nothing is evaluated during "
            "the run",
        ),
    ],
)
def test_loads_with_a_warning(setting: str, message: str) -> None:
    text, number = with_setting(setting)
    if setting.startswith("data.batch_size"):
        text, number = text.replace("  batch_size: 16\n", ""), number - 1
    assert load(text).notices == (f"config.yml:{number}: {message}",)


def test_the_project_name_names_the_run() -> None:
    loaded = load("project_name: Browse Agent\n" + MINIMAL)
    assert loaded.project_name == "Browse Agent"
    assert loaded.notices == ()
    assert load(MINIMAL).project_name is None


@pytest.mark.parametrize(
    ("old", "new"),
    [("disabled", "disabled"), ("easy", "low"), ("medium", "medium"), ("hard", "high")],
)
def test_thinking_mode_is_read_as_reasoning_mode(old: str, new: str) -> None:
    loaded = load(MINIMAL + f"rollout: {{thinking_mode: {old}}}\n")
    assert loaded.config.rollout.reasoning_mode == new
    assert loaded.notices == (
        f"config.yml:5: rollout.thinking_mode is an old key, read as rollout.reasoning_mode: {new}",
    )


def test_reasoning_mode_wins_over_thinking_mode() -> None:
    loaded = load(MINIMAL + "rollout: {thinking_mode: easy, reasoning_mode: high}\n")
    assert loaded.config.rollout.reasoning_mode == "high"
    assert loaded.notices == (
        "config.yml:5: rollout.thinking_mode is ignored: rollout.reasoning_mode is set",
    )


def test_save_step_zero_is_read_as_the_end_only() -> None:
    loaded = load(MINIMAL.replace("num_epochs: 3", "num_epochs: 3, save_step: 0"))
    assert loaded.config.trainer.save_step == -1
    assert loaded.notices == (
        "config.yml:4: trainer.save_step is 0, which was an old way to say -1: "
        "only the end is saved",
    )


def test_max_tool_response_chars_is_honoured() -> None:
    loaded = load(MINIMAL + "rollout: {max_tool_response_chars: 4000}\n")
    assert loaded.config.rollout.max_tool_response_chars == 4000
    assert loaded.notices == (
        "config.yml:5: rollout.max_tool_response_chars is an old key, honoured in characters; "
        "rollout.max_tool_response counts tokens",
    )


def test_evaluation_with_its_file_needs_no_warning() -> None:
    Path("val.jsonl").write_text("{}\n")
    text = MINIMAL.replace("num_epochs: 3", "num_epochs: 3, eval_step: 5")
    assert load(text).notices == ()


def test_local_sites_that_are_folders_load() -> None:
    Path("site").mkdir()
    loaded = load(MINIMAL + "browser: {local_sites: {clinic.test: site}}\n")
    assert loaded.config.browser.local_sites == {"clinic.test": "site"}


# --- files of the past


def test_the_first_browsing_agent_loads_with_a_line_for_each_old_key() -> None:
    loaded = load(
        """        project_id: ""
        project_name: "MedBrowse Agent"
        dataset_id: ""
        dataset_name: "medbrowsecomp"
        dataset_type: distill
        organization_id: ""

        data:
          train_file: train.jsonl
          batch_size: 16
          group_size: 4

        model:
          path: Qwen/Qwen3-8B
          qlora_rank: 32
          name: "MedBrowse Agent (On-Policy Distillation)"

        teacher:
          path: Qwen/Qwen3-32B

        algorithm:
          loss_fn: ppo
          adv_estimator: grpo
          kl_penalty_coef: 0.1

        rollout:
          max_turns: 10
          max_tokens: 4096
          termination_policy: last_tool
          max_tool_response_chars: 8000
          tool_timeout: 120

        trainer:
          num_epochs: 3
          learning_rate: 1e-4
          save_step: 0
          eval_step: 50
        """
    )
    assert loaded.notices == (
        "config.yml:1: project_id is ignored: runs are local",
        "config.yml:3: dataset_id is ignored: the prompts are the file data.train_file",
        "config.yml:4: dataset_name is ignored: the prompts are the file data.train_file",
        "config.yml:6: organization_id is ignored: runs are local",
        "config.yml:16: model.name is ignored: rnow run --name names a run and its model",
        "config.yml:30: rollout.max_tool_response_chars is an old key, honoured in characters; "
        "rollout.max_tool_response counts tokens",
        "config.yml:36: trainer.save_step is 0, which was an old way to say -1: "
        "only the end is saved",
        "config.yml:37: trainer.eval_step is 50, but there is no val.jsonl: "
        "nothing is evaluated during the run",
    )
    rollout = loaded.config.rollout
    assert (rollout.max_turns, rollout.max_tokens, rollout.tool_timeout) == (10, 4096, 120)
    assert loaded.config.algorithm.kl_penalty_coef == 0.1
    assert loaded.config.trainer.learning_rate == 1e-4


def test_an_old_rl_file_loads() -> None:
    loaded = load(
        """        project_id: 6d0f4c
        dataset_type: rl
        data: {batch_size: 16, group_size: 8}
        model: {path: Qwen/Qwen3-30B-A3B, qlora_rank: 32, qlora_alpha: 64}
        algorithm: {loss_fn: ppo, adv_estimator: reinforce, kl_penalty_coef: 0.01}
        rollout: {max_turns: 1, max_tokens: 2048, reward_timeout: 120}
        trainer: {num_epochs: 30, learning_rate: 5e-5, save_step: 20}
        """
    )
    assert loaded.notices == ("config.yml:1: project_id is ignored: runs are local",)
    assert loaded.config.rollout.reward_timeout == 120


def test_the_flat_form_is_refused_alone_and_says_where_its_keys_went() -> None:
    assert error_of(
        """        project_description: x
        dataset_description: x
        dataset_type: rl
        params:
          model: Qwen/Qwen3-8B
          num_epochs: 3
          batch_size: 16
        """
    ) == (
        "config.yml:4: params is the flat form of old files and is no longer read; move its keys "
        "into the sections data, model, teacher, algorithm, rollout, trainer "
        "(num_epochs is now trainer.num_epochs, batch_size is now data.batch_size)"
    )


# --- overrides


def test_overrides_win_in_their_order_and_say_what_was() -> None:
    loaded = load(
        MINIMAL,
        overrides=["trainer.num_epochs=4", "trainer.num_epochs=5", "algorithm.kl_clip = 3"],
    )
    assert loaded.overrides == (
        "trainer.num_epochs = 4 (was: 3)",
        "trainer.num_epochs = 5 (was: 4)",
        "algorithm.kl_clip = 3 (was: not set)",
    )
    assert loaded.config.trainer.num_epochs == 5
    assert loaded.config.algorithm.kl_clip == 3.0
    assert "trainer.num_epochs" not in loaded.lines


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("trainer.max_steps=1_000", 1000),
        ("trainer.max_steps=null", None),
        ("trainer.max_steps=None", None),
        ("trainer.learning_rate=1e-4", 1e-4),
        ("trainer.learning_rate=.5", 0.5),
        ("trainer.learning_rate=2", 2.0),
        ("trainer.activation_checkpointing=True", True),
        ("trainer.activation_checkpointing=false", False),
        ("model.dtype=float32", "float32"),
        ("model.path=a=b", "a=b"),
        ("rollout.reasoning_mode=none", "none"),
        ("rollout.reasoning_mode=null", None),
        ("tools.env=[KEY, OTHER]", ["KEY", "OTHER"]),
        ("tools.env=[]", []),
        ("browser.local_sites={}", {}),
    ],
)
def test_override_values(override: str, value: object) -> None:
    config = load(MINIMAL + "tools: {env: [A]}\n", overrides=[override]).config
    section, _, name = override.partition("=")[0].partition(".")
    assert config.model_dump()[section][name] == value


def test_an_override_can_replace_a_section() -> None:
    loaded = load(MINIMAL, overrides=["teacher={path: other, concurrency: 2}", "rollout=null"])
    assert require_distill(loaded).path == "other"
    assert "teacher.path" not in loaded.lines


def test_an_old_key_as_override_is_placed_at_the_override() -> None:
    loaded = load(MINIMAL, overrides=["rollout.thinking_mode=easy"])
    assert loaded.notices == (
        "override rollout.thinking_mode=easy: rollout.thinking_mode is an old key, "
        "read as rollout.reasoning_mode: low",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x", "Invalid override 'x'. Use format: key=value or nested.key=value"),
        ("=3", "Invalid override '=3'. Use format: key=value or nested.key=value"),
        ("a..b=3", "Invalid override 'a..b=3'. Use format: key=value or nested.key=value"),
        (
            "data.batch_size.x=3",
            "Cannot override 'data.batch_size.x': 'data.batch_size' is not a nested object",
        ),
        ("trainer.lr=3", "trainer.lr is not a setting; did you mean trainer.learning_rate?"),
        ("foo.bar=3", None),
        (
            "trainer.num_epochs=0",
            "trainer.num_epochs is 0; it must be a whole number of at least 1",
        ),
        ("seed.a=1", "seed is {'a': 1}; it must be a whole number of at least 0"),
        (
            "tools.env=[1,",
            "[1, is not valid YAML: expected the node content, but found '<stream end>'",
        ),
        (
            "engine.args={a: 1, a: 2}",
            "'{a: 1, a: 2}' cannot be read: a is set twice, first in line 1; keep one of them",
        ),
        (
            f"seed={'9' * 5000}",
            f"'{'9' * 48}… cannot be read: Exceeds the limit (4300 digits) for integer string "
            "conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the "
            "limit",
        ),
        ("engine.kind=vlm", "engine.kind is 'vlm'; it must be one of auto, vllm, local"),
        (
            "trainer.report_to=x",
            "trainer.report_to is 'x'; it must be a list, each one of tensorboard, wandb, mlflow",
        ),
    ],
)
def test_errors_of_overrides_name_the_override(override: str, message: str | None) -> None:
    if message is None:
        message = (
            "foo is not a setting; the top of the file has seed, dataset_type, data, model, "
            "teacher, algorithm, rollout, trainer, engine, tools, browser, resources"
        )
    assert error_of(MINIMAL, overrides=[override]) == f"override {override}: {message}"


def test_a_later_override_of_a_section_takes_the_place_of_earlier_ones_inside_it() -> None:
    assert error_of(MINIMAL, overrides=["teacher.path=x", "teacher={path: 3}"]) == (
        "override teacher={path: 3}: teacher.path is 3; it must be a text that is not empty"
    )


def test_file_and_overrides_are_wrong_together() -> None:
    assert error_of("sed: 1\n" + MINIMAL, overrides=["x"]) == (
        "config.yml:1: sed is not a setting; did you mean seed?\n"
        "override x: Invalid override 'x'. Use format: key=value or nested.key=value"
    )
