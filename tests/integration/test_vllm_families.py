"""Families that do more than Llama does, on a real vLLM server: its numbers are the trainer's.

All families and what came out are in docs/models.md; tests/bench/families_vllm.py measures them.
"""

from pathlib import Path

import pytest
from vllm_families import train_and_serve
from vllm_pair import TOLERANCE

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


# Gemma 2: caps, sliding windows, no LM head of its own in vLLM. Granite: factors of four kinds.
@pytest.mark.parametrize(("family", "tuning"), [("gemma2", "full"), ("granite", "lora")])
async def test_a_student_is_served_as_it_is_trained(
    family: str, tuning: str, tmp_path: Path
) -> None:
    started, published = await train_and_serve(family, tmp_path, tuning=tuning)
    assert started.worst < TOLERANCE
    assert published.worst < TOLERANCE
    assert published.mismatch_kl < 1e-9
    assert published.effect > 0.5  # nats: other weights, not the first ones
