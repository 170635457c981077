import pytest
from builders import medbrowse_grade

from rnow.medbrowse.grading import normalize_task_name
from rnow.tools.graders import Grade

RIGHT = [
    ("Ingredient", "VELORAFENIB MESYLATE", "INGREDIENT: velorafenib", "velorafenib"),
    ("Ingredient", "velorafenib", "**Ingredient:** Velorafenib (Velora)", "Velorafenib (Velora)"),
    ("Ingredient", "sodium chloride", "INGREDIENT: Sodium Chloride", "Sodium Chloride"),
    ("Ingredient", "duxima; velora", "INGREDIENT: Velora HCl and Duxima", "Velora HCl and Duxima"),
    ("Ingredient_prompt", "duxima", "I think so.\n\nINGREDIENT: `duxima`.", "duxima"),
    ("Ingredient", "duxima", "INGREDIENT: name\nso\nINGREDIENT: duxima", "duxima"),
    ("Ingredient", "duxima", "<think>INGREDIENT: x</think>INGREDIENT: duxima", "duxima"),
    (
        "Applicant_Full_Name",
        "KORELA PHARMS INC",
        "COMPANY: Korela Pharmaceuticals, Inc.",
        "Korela Pharmaceuticals, Inc",
    ),
    (
        "Applicant_Full_Name",
        "Eli Moro & Co",
        "COMPANY: eli moro and company",
        "eli moro and company",
    ),
    ("Applicant_Full_Name", "Sanóva S.A.", "COMPANY: The Sanova SA", "The Sanova SA"),
    ("Patent_Expire_Date_Text", "Apr 5, 2031", "date: 2031", "2031"),
    ("Patent_Expire_Date_Text", "Apr 5, 2031", "DATE: 07-01-2031", "07-01-2031"),
    ("Exclusivity_Date", "04-05-2027", "date: 04-05-2027", "04-05-2027"),
    ("Exclusivity_Date", "Apr 5, 2027", "date: 2027-04-05", "2027-04-05"),
    ("Exclusivity_Date", "2027-04-05", "Date: 5th April 2027", "5th April 2027"),
    ("Exclusivity_Date", "NA", "date: N/A", "N/A"),
    ("Open_on_Approval", "100.00", "PRICE: $101.00 (closing 90)", "$101.00 (closing 90)"),
    ("Open_on_Approval", "1,234.5", "Opening price: 1234.50 USD", "1234.50 USD"),
    ("Open_on_Approval", "Not_Listed", "PRICE: not listed", "not listed"),
    ("ingredient", "VELORA", "INGREDIENT: VELORA", "VELORA"),
    ("company", "DUXIMA labs", "COMPANY: DUXIMA labs", "DUXIMA labs"),
    ("company", "DUXIMA labs", "COMPANY: DUXIMA labs<|im_end|>", "DUXIMA labs"),
    ("date", "2031-04-05", "DATE: 2031-04-05", "2031-04-05"),
    ("capital", "Bern  city", " bern City\n", "bern City"),
    ("capital", "Bern", "Bern<|eot_id|>\n<|endoftext|>", "Bern"),
]

WRONG = [
    ("Ingredient", "velora", "INGREDIENT: velora or duxima", "velora or duxima", True),
    ("Ingredient", "velora; duxima", "INGREDIENT: velora", "velora", True),
    ("Ingredient", "velora", "It is velora.", None, False),
    ("Ingredient", "velora", "INGREDIENT:", None, False),
    ("Ingredient", "velora", "INGREDIENT: NA", "NA", True),
    ("Ingredient", "velora", "<think>INGREDIENT: velora</think>I cannot say.", None, False),
    ("Applicant_Full_Name", "Korela Inc", "COMPANY: Korela Labs", "Korela Labs", True),
    ("Patent_Expire_Date_Text", "Apr 5, 2031", "DATE: 2031 or 2032", "2031 or 2032", True),
    ("Exclusivity_Date", "04-05-2027", "DATE: 2027", "2027", True),
    ("Exclusivity_Date", "04-05-2027", "DATE: 05-04-2027", "05-04-2027", True),
    ("Exclusivity_Date", "NA", "DATE: 04-05-2027", "04-05-2027", True),
    ("Exclusivity_Date", "02-30-2027", "DATE: 02-30-2027", "02-30-2027", True),
    ("date", "2031-04-05", "DATE: 2031-04-05, 2031-04-06", "2031-04-05, 2031-04-06", True),
    ("date", "2031-04-05", "UPDATE: 2031-04-05", None, False),
    ("Open_on_Approval", "100.00", "PRICE: 101.01", "101.01", True),
    ("Open_on_Approval", "100.00", "PRICE: unknown", "unknown", True),
    ("capital", "Bern", "Basel", "Basel", True),
    ("capital", "Bern", " ", None, False),
]


@pytest.mark.parametrize(("task", "expected", "answer", "extracted"), RIGHT)
def test_answer_is_correct(task: str, expected: str, answer: str, extracted: str) -> None:
    assert medbrowse_grade(task, expected, answer) == Grade(correct=True, extracted=extracted)


@pytest.mark.parametrize(("task", "expected", "answer", "extracted", "format_ok"), WRONG)
def test_answer_is_wrong(
    task: str, expected: str, answer: str, extracted: str | None, format_ok: bool
) -> None:
    grade = medbrowse_grade(task, expected, answer)
    assert grade == Grade(correct=False, extracted=extracted)
    assert grade.format_ok is format_ok


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Ingredient", "ingredient"),
        ("ingredient_prompt", "ingredient"),
        ("Applicant_Full_Name", "applicant_full_name"),
        ("Applicant full name prompt", "applicant_full_name"),
        (" Open_on_Approval_Prompt ", "open_on_approval"),
        ("date", "date"),
    ],
)
def test_a_task_has_one_name(label: str, name: str) -> None:
    assert normalize_task_name(label) == name
