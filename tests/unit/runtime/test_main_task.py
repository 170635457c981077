import pytest

from rnow.runtime.main_task import run_main


class Large:
    """A result that must not be written out."""

    def __repr__(self) -> str:
        raise AssertionError("it was written out")


def test_a_large_result_is_not_written_out() -> None:
    large = Large()

    async def work() -> Large:
        return large

    assert run_main(work()) is large


def test_an_error_goes_up_as_it_is() -> None:
    async def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match=r"^as it is$"):
        run_main(work())
