from rnow.engines.vllm.log import last_line, last_words

# Cut from what vLLM 0.32 printed about a model file that ends too early.
BROKEN_MODEL = """\
(APIServer pid=11) INFO 11-23 07:56:51 [model.py:733] Resolved architecture: Qwen3ForCausalLM
(Worker pid=13) ERROR 11-23 07:58:21 [multiproc_executor.py:100] WorkerProc failed to start.
(Worker pid=13) ERROR 11-23 07:58:21 [multiproc_executor.py:100] Traceback (most recent call last):
(Worker pid=13) ERROR 11-23 07:58:21 [multiproc_executor.py:100]   File "/x/loader.py", line 1, in f
(Worker pid=13) ERROR 11-23 07:58:21 [multiproc_executor.py:100]     raise
(Worker pid=13) ERROR 11-23 07:58:21 [x.py:100] safetensors.SafetensorError: incomplete metadata
\rLoading safetensors checkpoint shards:   0% Completed | 0/1\r
(EngineCore pid=12) ERROR 11-23 07:58:22 [c.py:1] safetensors.SafetensorError: incomplete metadata
(APIServer pid=11) Traceback (most recent call last):
(APIServer pid=11) RuntimeError: Engine core initialization failed. See root cause above.
[rank0]:[W1123 07:58:23] Warning: destroy_process_group() was not called
"""

BAD_SETTING = """\
Traceback (most recent call last):
  File "/x/api_server.py", line 59, in <module>
pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""


def test_the_cause_is_told_once_and_not_that_there_was_a_cause() -> None:
    assert last_words(BROKEN_MODEL) == "  safetensors.SafetensorError: incomplete metadata"


def test_a_refused_setting_is_told_with_its_values() -> None:
    assert last_words(BAD_SETTING) == (
        "  pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "    Value error, User-specified max_model_len (99999) is greater than the derived "
        "max_model_len"
    )


def test_a_command_line_that_argparse_refuses_is_told() -> None:
    log = "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --x\n"
    assert last_words(log) == "  api_server.py: error: unrecognized arguments: --x"


def test_a_killed_server_is_told_by_its_last_lines() -> None:
    log = "ValueError: of an hour ago\n" + "\n".join(f"line {n}" for n in range(20))
    assert last_words(log, was_killed=True) == "\n".join(f"  line {n}" for n in range(14, 20))


def test_a_log_without_a_cause_is_told_by_its_last_lines() -> None:
    assert last_words("one\n\ntwo\n") == "  one\n  two"
    assert last_words("") == "  (nothing)"


def test_the_progress_is_the_last_line_without_its_prefix() -> None:
    assert last_line("(A pid=1) INFO 11-23 07:56:51 [m.py:7] Loading weights\n\n") == (
        "Loading weights"
    )
    assert last_line("") == ""
