import pytest

from rnow.config.settings import Config
from rnow.records import Prompt
from rnow.training.steps import prompts_by_step


def prompt_order(
    num_prompts: int,
    *,
    batch_size: int,
    num_epochs: int,
    seed: int = 0,
    max_steps: int | None = None,
) -> list[tuple[int, ...]]:
    """Return the indices of each step's prompts."""
    config = Config.model_validate(
        {
            "seed": seed,
            "data": {"batch_size": batch_size},
            "model": {"path": "student"},
            "teacher": {"path": "teacher"},
            "trainer": {"num_epochs": num_epochs, "max_steps": max_steps},
        }
    )
    prompts = [
        Prompt(index=index, line=index + 1, messages=(), tools=None) for index in range(num_prompts)
    ]
    steps = prompts_by_step(config, prompts)
    return [tuple(prompt.index for prompt in step) for step in steps]


def test_an_epoch_takes_every_prompt_once_and_its_last_batch_is_short() -> None:
    steps = prompt_order(10, batch_size=4, num_epochs=3)
    assert [len(step) for step in steps] == [4, 4, 2] * 3
    for epoch in range(3):
        taken = [index for step in steps[3 * epoch : 3 * epoch + 3] for index in step]
        assert sorted(taken) == list(range(10))


def test_epochs_differ_and_seeds_differ() -> None:
    first, second = prompt_order(10, batch_size=10, num_epochs=2)
    (other,) = prompt_order(10, batch_size=10, num_epochs=1, seed=1)
    assert len({first, second, other}) == 3


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    many = prompt_order(7, batch_size=3, num_epochs=5, seed=3)
    few = prompt_order(7, batch_size=7, num_epochs=2, seed=3)
    assert few[1] == tuple(index for step in many[3:6] for index in step)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert prompt_order(6, batch_size=6, num_epochs=2) == [(3, 5, 1, 0, 2, 4), (0, 1, 2, 4, 5, 3)]


@pytest.mark.parametrize(
    ("num_prompts", "batch_size", "num_epochs", "max_steps", "num_steps"),
    [(605, 4, 3, None, 456), (8, 4, 1, None, 2), (8, 4, 3, 5, 5), (8, 4, 1, 5, 2)],
)
def test_number_of_steps(
    num_prompts: int, batch_size: int, num_epochs: int, max_steps: int | None, num_steps: int
) -> None:
    whole = prompt_order(num_prompts, batch_size=batch_size, num_epochs=num_epochs)
    steps = prompt_order(
        num_prompts, batch_size=batch_size, num_epochs=num_epochs, max_steps=max_steps
    )
    assert len(steps) == num_steps
    assert steps == whole[:num_steps]
