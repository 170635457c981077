from builders import graded_prompt, medbrowse_grading

from rnow.core.grader import GRADER_REGISTRY
from rnow.evaluation.constant_answers import ConstantAnswers
from rnow.evaluation.grading import MAX_PAIRS, Grading
from rnow.records import Prompt
from rnow.tools.graders import LocalGraders


def prompts_of(*rows: tuple[str, str]) -> list[Prompt]:
    return [
        graded_prompt(index, task=task, expected=expected)
        for index, (task, expected) in enumerate(rows)
    ]


async def test_the_best_constant_answer_is_counted_with_the_rule_of_the_task() -> None:
    prompts = prompts_of(
        ("ingredient", "velora sulfate"),
        ("ingredient", "VELORA"),
        ("ingredient", "duxima"),
        ("exclusivity_date", "04-05-2027"),
        ("exclusivity_date", "NA"),
        ("exclusivity_date", "N/A"),
    )
    constants = await medbrowse_grading().constants(prompts)
    velora, na = frozenset({"velora sulfate", "VELORA"}), frozenset({"NA", "N/A"})
    assert constants == ConstantAnswers(
        right={
            0: velora,
            1: velora,
            2: frozenset({"duxima"}),
            3: frozenset({"04-05-2027"}),
            4: na,
            5: na,
        },
    )
    # velora in two of three, NA in two of three
    assert constants.accuracy(prompts) == 4 / 6
    assert constants.accuracy(prompts[2:4]) == 1.0


async def test_of_more_expected_answers_than_can_be_compared_the_commonest_are_tried() -> None:
    num = 400
    assert num * num > MAX_PAIRS
    names = [("capital", f"City {number}") for number in range(num)]
    prompts = prompts_of(*names, ("capital", "city 7"), ("capital", "City 399"))
    grading = Grading(LocalGraders(GRADER_REGISTRY), default="same_text", include_thinking=False)
    constants = await grading.constants(prompts)
    # City 399 is asked for twice, so it is tried, although 401 texts are too many for 401 rows.
    tried = MAX_PAIRS // 401
    assert constants.notes == (
        f"capital: the constant answer is the best of the {tried} commonest expected answers; "
        "all 401 were too many to compare",
    )
    assert len(frozenset().union(*constants.right.values())) == tried
    assert constants.right[401] == {"City 399"}
    assert constants.right[400] == {"City 7"}
    assert constants.accuracy(prompts) == 2 / 402


def test_what_is_not_known_of_one_task_is_not_known_of_all() -> None:
    prompts = prompts_of(("capital", "Bern"), ("river", "Aare"))
    constants = ConstantAnswers(right={0: frozenset({"Bern"})})
    assert constants.accuracy(prompts[:1]) == 1.0
    assert constants.accuracy(prompts) is None


async def test_an_expected_answer_that_its_grader_cannot_read_is_told() -> None:
    prompts = prompts_of(("date", "2027-02-03"), ("date", "02-30-2027"), ("date", "soon"))
    constants = await medbrowse_grading().constants(prompts)
    assert constants.notes == (
        "date: by its grader the expected answer itself is wrong 2 times: '02-30-2027' in line 2",
    )
    assert constants.accuracy(prompts) == 1 / 3
