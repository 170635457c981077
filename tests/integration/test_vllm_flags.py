"""The command lines of servers on GPUs, read by vLLM's own parser: no GPU is needed for that."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from vllm_real import server_settings, vllm_python

from rnow.engines.vllm.command import command

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

READ = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

read = []
for words in json.loads(sys.argv[1]):
    given = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    engine = AsyncEngineArgs.from_cli_args(given)
    mode = engine.compilation_config.cudagraph_mode
    read.append({
        "uds": given.uds, "graphs": None if mode is None else mode.name,
        "max_num_seqs": engine.max_num_seqs, "overrides": engine.hf_overrides,
        "max_loras": engine.max_loras, "eager": engine.enforce_eager,
        "quantization": engine.quantization, "tensor_parallel": engine.tensor_parallel_size,
        "lora_targets": engine.lora_target_modules,
    })
print(json.dumps(read))
"""


def test_vllm_reads_what_is_meant(tmp_path: Path) -> None:
    on_gpu: dict[str, Any] = {"devices": {"CUDA_VISIBLE_DEVICES": "0"}, "dtype": "bfloat16"}
    student = server_settings(
        tmp_path,
        tmp_path / "log",
        max_lora_rank=32,
        lora_targets=("o_proj", "q_proj"),
        max_num_seqs=32,
        **on_gpu,
    )
    teacher = server_settings(
        tmp_path,
        tmp_path / "log",
        prefix_caching=False,
        captures_graphs=False,
        quantization="fp8",
        tensor_parallel_size=2,
        max_num_batched_tokens=2048,
        **on_gpu,
    )
    lines = [command(each, socket=tmp_path / "http")[3:] for each in (student, teacher)]
    done = subprocess.run(
        [vllm_python(), "-c", READ, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"CUDA_VISIBLE_DEVICES": "", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    both = {"uds": str(tmp_path / "http"), "eager": False}
    assert json.loads(done.stdout.splitlines()[-1]) == [
        both
        | {
            "graphs": None,
            "max_num_seqs": 32,
            "overrides": {"head_dtype": "float32"},
            "max_loras": 2,
            "quantization": None,
            "tensor_parallel": 1,
            "lora_targets": ["o_proj", "q_proj"],
        },
        both
        | {
            "graphs": "NONE",
            "max_num_seqs": None,
            "overrides": {"head_dtype": "float32"},
            "max_loras": 1,
            "quantization": "fp8",
            "tensor_parallel": 2,
            "lora_targets": None,
        },
    ]
