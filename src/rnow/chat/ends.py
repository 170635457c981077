"""What ends a text: the template's end of turn, the student's and the teacher's tokens.

Rollouts stop at each of them. A base model's files know the end of a document alone; its template
ends turns with another token, and an instruct teacher ends them there too.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from rnow.chat.calling import SENTINEL
from rnow.chat.calls.probe import QUESTION, RenderText
from rnow.chat.markup import Markup
from rnow.errors import TemplateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The ids that end a text, by who says so."""

    turn: int  # behind an answer, in the template
    calls: frozenset[int]  # behind calls, in the template
    student: frozenset[int]  # in the files of the model
    teacher: frozenset[int]

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, the end of turn first: what generation_config.json should say."""
        return (self.turn, *sorted((self.calls | self.student | self.teacher) - {self.turn}))

    def notices(self, name: str, decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
        """Say where the template, the student's files and the teacher's differ."""
        told = "rollouts stop at each, and the trained model's generation_config.json names all"

        def shown(ids: Collection[int]) -> str:
            return ", ".join(decode([id]) for id in sorted(ids)) or "no token"

        notices = []
        if self.turn not in self.student:
            notices.append(
                f"the chat template of {name} ends a turn with {shown([self.turn])}, and the "
                f"model's files call {shown(self.student)} an end: {told}"
            )
        more = self.teacher - self.student - {self.turn}
        if more:
            notices.append(
                f"the teacher's files call {shown(more)} an end, the student's do not: {told}"
            )
        return tuple(notices)


def find_end_of_turn(
    render: RenderText, markup: Markup, eos_ids: Collection[int], *, name: str
) -> int:
    """Return the token that ends an answer; raise TemplateError where there is none.

    The one that both an answer at the end and one before a question have, and that the model's
    files call an end; else the first that the template writes behind an answer.
    """
    answer = {"role": "assistant", "content": SENTINEL}
    _, found, last = render([QUESTION, answer], goes_on=False).partition(SENTINEL)
    if not found:
        raise TemplateError(f"the chat template of {name} leaves out what the assistant said")
    try:
        again = render([QUESTION, answer, QUESTION], goes_on=False)
    except TemplateError:
        again = ""
    followed = again.partition(SENTINEL)[2].partition(QUESTION["content"])[0]
    at_end = [id for _, id in markup.find(last)]
    before_question = [id for _, id in markup.find(followed)]
    both = [id for id in at_end if id in before_question and id in eos_ids]
    ends = [*both, *at_end, *before_question]
    if not ends:
        raise TemplateError(
            f"the chat template of {name} goes on after an assistant's turn with {last[:40]!r}, "
            "which does not begin with an added token: there is no token by which the student "
            "could end its turn"
        )
    return ends[0]
