import os
from pathlib import Path
from typing import Any

import pytest

from rnow.engines.vllm.command import VllmServerSettings, command, environment
from rnow.errors import ConfigError
from rnow.runtime.own_variables import set_for_this_process, started_with

SOCKET = Path("/tmp/rnow-1f0c/http")


def make_settings(**fields: Any) -> VllmServerSettings:
    chosen: dict[str, Any] = {
        "role": "student",
        "model": Path("/models/student"),
        "log_file": Path("/logs/student.log"),
        "max_model_len": 4096,
        "python": "/vllm/bin/python",
        "dtype": "auto",
        "deterministic": False,
        "start_timeout_s": 900.0,
        **fields,
    }
    return VllmServerSettings(**chosen)


def flags(**fields: Any) -> list[str]:
    return command(make_settings(**fields), socket=SOCKET)


def words(line: str) -> list[str]:
    return line.split(" ")


def value_of(given: list[str], flag: str) -> str:
    return given[given.index(flag) + 1]


def test_a_student_on_cpu_is_started_like_this() -> None:
    given = flags(dtype="float32", max_lora_rank=24, lora_targets=("k_proj", "q_proj"))
    assert given == words(
        "/vllm/bin/python -m vllm.entrypoints.openai.api_server --model /models/student "
        "--served-model-name rnow-student-1f0c --uds /tmp/rnow-1f0c/http --dtype float32 "
        "--max-model-len 4096 --tensor-parallel-size 1 --enable-scale-out --generation-config vllm "
        "--enable-prefix-caching --enforce-eager --disable-uvicorn-access-log "
        "--no-enable-chunked-prefill "
        "--max-num-batched-tokens 4096 --enable-lora --max-lora-rank 32 --max-loras 2 "
        "--max-cpu-loras 4 --lora-target-modules k_proj q_proj"
    )


def test_a_long_prompt_on_cpu_is_read_in_one_part() -> None:
    given = flags(max_model_len=9000)
    assert "--no-enable-chunked-prefill" in given
    assert value_of(given, "--max-num-batched-tokens") == "9000"


def test_a_teacher_over_two_gpus_is_started_like_this() -> None:
    settings = VllmServerSettings(
        role="teacher",
        max_model_len=32769,
        max_num_batched_tokens=2048,
        prefix_caching=False,
        model=Path("/models/Qwen3-32B"),
        log_file=Path("teacher.log"),
        python="/vllm/bin/python",
        devices={"CUDA_VISIBLE_DEVICES": "2,3"},
        max_num_seqs=16,
        tensor_parallel_size=2,
        quantization="fp8",
        dtype="bfloat16",
        deterministic=False,
        start_timeout_s=900.0,
        gpu_memory_utilization=0.85,
        captures_graphs=False,
    )
    given = command(settings, socket=SOCKET)
    assert value_of(given, "--compilation-config") == '{"cudagraph_mode": "NONE"}'
    assert value_of(given, "--hf-overrides") == '{"head_dtype": "float32"}'
    given[given.index("--compilation-config") + 1] = "GRAPHS"
    given[given.index("--hf-overrides") + 1] = "HEAD"
    assert given == words(
        "/vllm/bin/python -m vllm.entrypoints.openai.api_server --model /models/Qwen3-32B "
        "--served-model-name rnow-teacher-1f0c --uds /tmp/rnow-1f0c/http --dtype bfloat16 "
        "--max-model-len 32769 --tensor-parallel-size 2 --enable-scale-out --generation-config "
        "vllm --no-enable-prefix-caching --no-enforce-eager --disable-uvicorn-access-log "
        "--hf-overrides HEAD --gpu-memory-utilization 0.85 --compilation-config GRAPHS "
        "--quantization fp8 --max-num-batched-tokens 2048 --max-num-seqs 16"
    )


def test_further_arguments_win_and_keep_their_kind() -> None:
    given = flags(
        max_num_batched_tokens=2048,
        args={
            "max_num_batched_tokens": 1024,
            "enforce-eager": False,
            "hf_overrides": {"rope_theta": 1},
            "seed": None,
        },
    )
    assert given.count("--max-num-batched-tokens") == 1
    assert value_of(given, "--max-num-batched-tokens") == "1024"
    assert "--no-enforce-eager" in given
    assert "--enforce-eager" not in given
    assert value_of(given, "--hf-overrides") == '{"head_dtype": "float32", "rope_theta": 1}'
    assert "--seed" not in given


def test_the_heads_precision_is_the_users_to_choose() -> None:
    given = flags(dtype="bfloat16", args={"hf_overrides": {"head_dtype": "model"}})
    assert value_of(given, "--hf-overrides") == '{"head_dtype": "model"}'


def test_a_deterministic_server_has_kernels_for_it_or_one_request_at_a_time() -> None:
    on_gpu = {"devices": {"CUDA_VISIBLE_DEVICES": "0"}, "deterministic": True, "max_num_seqs": 64}
    assert environment(make_settings(**on_gpu), {}, socket=SOCKET)["VLLM_BATCH_INVARIANT"] == "1"
    assert value_of(flags(**on_gpu), "--max-num-seqs") == "64"
    assert "--enable-prefix-caching" in flags(**on_gpu)
    on_cpu = {"deterministic": True, "max_num_seqs": 64}
    assert "VLLM_BATCH_INVARIANT" not in environment(make_settings(**on_cpu), {}, socket=SOCKET)
    assert value_of(flags(**on_cpu), "--max-num-seqs") == "1"
    assert "--no-enable-prefix-caching" in flags(**on_cpu)


@pytest.mark.parametrize("name", ["port", "uds", "served-model-name"])
def test_what_rnow_sets_itself_cannot_be_set(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        flags(args={name: 1})
    assert str(caught.value) == f"engine.args.{name} is set by rnow itself; remove it"


@pytest.mark.parametrize("name", ["trust_remote_code", "trust-remote-code"])
def test_no_server_runs_code_of_a_models_folder(name: str) -> None:
    assert not any("trust" in word for word in flags())
    with pytest.raises(ConfigError) as caught:
        flags(args={name: True})
    assert str(caught.value) == (
        f"engine.args.{name}: rnow never runs a model folder's code; remove it"
    )


def test_a_rank_that_vllm_has_no_room_for_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        flags(max_lora_rank=1024)
    assert str(caught.value) == "model.qlora_rank is 1024; vLLM serves adapters up to 512"


def test_the_environment_is_the_users_with_what_vllm_needs() -> None:
    environ = {
        "PATH": "/bin",
        "VLLM_API_KEY": "secret",
        "PYTHONPATH": "/ours",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "VLLM_SERVER_DEV_MODE": "0",
    }
    assert environment(make_settings(), environ, socket=SOCKET) == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_RPC_BASE_PATH": "/tmp/rnow-1f0c",
        "PYTHONSAFEPATH": "1",
    }
    assert environment(
        make_settings(python=None, devices={"CUDA_VISIBLE_DEVICES": "1"}), environ, socket=SOCKET
    ) == {
        "PATH": "/bin",
        "PYTHONPATH": "/ours",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_RPC_BASE_PATH": "/tmp/rnow-1f0c",
        "PYTHONSAFEPATH": "1",
    }


def test_what_this_process_set_for_itself_does_not_reach_a_server_and_what_the_user_set_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    ours = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_VISIBLE_DEVICES": "4"}
    set_for_this_process(ours)
    set_for_this_process({"CUDA_VISIBLE_DEVICES": "5"})
    assert (os.environ["PYTORCH_ALLOC_CONF"], os.environ["CUDA_VISIBLE_DEVICES"]) == (
        "expandable_segments:True",
        "5",
    )
    given = environment(make_settings(), started_with(), socket=SOCKET)
    assert "PYTORCH_ALLOC_CONF" not in given
    assert given["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:512"
    assert started_with()["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_what_torchrun_says_of_ranks_is_not_said_to_a_server() -> None:
    told = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK ROLE_NAME MASTER_ADDR"
    told += " MASTER_PORT TORCHELASTIC_RUN_ID VLLM_DP_RANK VLLM_DP_SIZE"
    kept = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "2", "VLLM_LOGGING_LEVEL": "DEBUG"}
    given = environment(make_settings(), dict.fromkeys(told.split(), "1") | kept, socket=SOCKET)
    assert given.keys() & set(told.split()) == set()
    assert given.items() >= kept.items()
