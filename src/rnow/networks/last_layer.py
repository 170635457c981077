"""The last layer of a network, for the tokens alone whose hidden states are wanted.

    x ──▶ keys, values: of all tokens ─┐
      └─▶ queries: of those wanted ────┴─▶ attention ──▶ o_proj, MLP: of those wanted ──▶ hidden

Nothing after the last layer reads the other tokens: with one in seven wanted, as in texts that are
mostly tools' answers, most of a layer's work is left out. Their hidden states are made of zeros
where work was left out, and mean nothing.

It holds for what works on each token by itself, under the names that most families of transformers
have; of a layer that is built otherwise all is computed. Knows torch by its tensors' methods alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def only_rows(body: Any, rows: Any) -> Iterator[None]:
    """Have the last layer compute `rows` alone, as long as the block lasts.

    `body`: a model of transformers without its LM head. `rows`: int64 [wanted], each once, into its
    [rows, width] tokens as one. Backward does not compute that layer again, as it may the others.
    """
    shape: Any = None

    def take(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal shape
        x, *rest = given
        shape = x.shape[:-1]
        return (x.flatten(0, -2).index_select(0, rows)[None], *rest)

    def put(module: Any, given: tuple[Any, ...], made: Any) -> Any:
        whole = made.new_zeros(shape.numel(), made.shape[-1])
        return whole.index_copy_(0, rows, made[0]).view(*shape, made.shape[-1])

    with ExitStack() as stack:
        last = _last_layer(body)
        if last is not None:  # a layer checkpoints itself in training mode alone
            stack.callback(setattr, last, "training", last.training)
            last.training = False
        for module in _modules_by_token(last):
            stack.callback(module.register_forward_pre_hook(take).remove)
            stack.callback(module.register_forward_hook(put).remove)
        yield


def _last_layer(body: Any) -> Any:
    layers = getattr(body, "layers", None)
    return layers[-1] if layers else None


def _modules_by_token(layer: Any) -> list[Any]:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    found = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
    if hasattr(mlp, "down_proj") and not hasattr(mlp, "experts"):
        found.append(mlp)
    return [module for module in found if module is not None]
