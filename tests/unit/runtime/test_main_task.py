import pytest

from rnow.runtime.main_task import run_main


class Large:
    """A result that counts how often it was written out."""

    num_written = 0

    def __repr__(self) -> str:
        self.num_written += 1
        return "large"


def test_a_large_result_is_not_written_out() -> None:
    large = Large()

    async def work() -> Large:
        return large

    assert run_main(work()) is large
    assert large.num_written == 0


def test_an_error_goes_up_as_it_is() -> None:
    async def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match=r"^as it is$"):
        run_main(work())
