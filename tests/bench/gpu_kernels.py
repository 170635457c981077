"""The trainer's own kernels on a GPU, each beside the same maths in float64.

    python tests/bench/gpu_kernels.py [--only attention head bits] [--cpu]

    attention   several sequences in a row: outputs and gradients, with a window and without
    head        log-probabilities in bfloat16: the logits are never rounded to it
    bits        the gradient of sequences of 32,768 tokens, three times: the same bits

Prints a line a claim; exits 1 if one does not hold, 2 where there is no CUDA device. `--cpu`: all
of it small and on the CPU, which shows that the script works.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gpu_smoke import Claims
from gpu_update import PACKED_BOUND, packed_attention_error, random_batch

from rnow.config.settings import AlgorithmSettings
from rnow.learner.lm_head import default_chunk_tokens, token_logprobs
from rnow.learner.packing import pack
from rnow.learner.trainer import accumulate_gradients

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy, qwen3

VOCAB = 151_936
HEAD_BOUND = 2e-3  # nats; logits of 20 that are rounded to bfloat16 are off by 0.06


def attention(claims: Claims, folder: Path, device: str) -> None:
    errors = {window: packed_attention_error(window, device=device) for window in (None, 64)}
    claims.say(
        "kernels/attention",
        {str(window): error for window, error in errors.items()},
        f"packed sequences are {max(errors.values()):.1e} from float64 at most, as a share of the "
        f"norm (bound {PACKED_BOUND:g})",
        holds=max(errors.values()) <= PACKED_BOUND,
    )


def head(claims: Claims, folder: Path, device: str) -> None:
    """Compare on logits of about ±20, where bfloat16 keeps steps of 0.125."""
    generator = torch.Generator().manual_seed(0)
    vocab = VOCAB if device == "cuda" else 8192
    hidden = torch.randn(300, 1024, generator=generator).to(device, torch.bfloat16)
    weight = (0.2 * torch.randn(vocab, 1024, generator=generator)).to(device, torch.bfloat16)
    targets = torch.randint(0, vocab, (300,), generator=generator).to(device)
    ours = token_logprobs(
        hidden, targets, weight=weight, bias=None, chunk_tokens=default_chunk_tokens(vocab)
    )
    exact = torch.cat(
        [
            (rows.double() @ weight.double().T).log_softmax(-1).gather(1, wanted[:, None])[:, 0]
            for rows, wanted in zip(hidden.split(50), targets.split(50), strict=True)
        ]
    )
    apart = float((ours.double() - exact).abs().max())
    rounded = (hidden[:50] @ weight.T).float().log_softmax(-1).gather(1, targets[:50, None])[:, 0]
    narrow = float((rounded.double() - exact[:50]).abs().max())
    claims.say(
        "kernels/head",
        {"apart": apart, "rounded_logits": narrow},
        f"log-probabilities are {apart:.1e} nats from float64 at most (bound {HEAD_BOUND:g}); with "
        f"logits rounded to bfloat16 it would be {narrow:.1e}",
        holds=apart <= HEAD_BOUND,
    )


def bits(claims: Claims, folder: Path, device: str) -> None:
    longest, wide = (32_768, 8) if device == "cuda" else (512, 1)
    qwen3(
        vocab_size=VOCAB,  # random weights give each token about -12 nats, as the batch says
        hidden_size=128 * wide,
        intermediate_size=384 * wide,
        num_hidden_layers=4,
        num_attention_heads=2 * wide,
        num_key_value_heads=wide,
        head_dim=128,
        max_position_embeddings=longest,
        initializer_range=0.02,
    ).save_pretrained(folder)
    policy = load_policy(folder, dtype="bfloat16", device=device)
    for name, parameter in policy.trained_parameters().items():
        if ".lora_B." in name:  # at first 0, and so the gradient of every A
            torch.manual_seed(0)
            parameter.data.normal_(std=0.02)
    same = {}
    for rows, tokens in ((1, longest), (4, longest // 4)):
        batch = random_batch(rows=rows, tokens=tokens, vocab_size=1024)
        found = []
        for _ in range(3):
            parameters = policy.trained_parameters().values()
            for parameter in parameters:
                parameter.grad = None
            accumulate_gradients(
                policy,
                pack(batch, max_tokens=longest, pads=False),
                algorithm=AlgorithmSettings(),
                num_actions=batch.num_actions,
            )
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            found.append(flat.cpu().numpy())
        assert np.isfinite(found[0]).all()
        assert np.abs(found[0]).max() > 0
        same[f"{rows}x{tokens}"] = all(np.array_equal(found[0], other) for other in found)
    claims.say(
        "kernels/bits",
        same,
        f"gradients of the same batch three times: the same bits, {same}",
        holds=all(same.values()),
    )


PARTS = {"attention": attention, "head": head, "bits": bits}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cpu", action="store_true", help="to try the script itself")
    given = parser.parse_args()
    if not given.cpu and not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    claims = Claims()
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](claims, Path(folder), "cpu" if given.cpu else "cuda")
    return int(claims.num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
