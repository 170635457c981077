"""The table of forms, and the choice of the one that reads back all that a template writes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rnow.chat.calls.bare_json import find_bare_json
from rnow.chat.calls.braces import find_braces
from rnow.chat.calls.channels import find_channels
from rnow.chat.calls.form import Form, read_calls
from rnow.chat.calls.json_object import find_json_object
from rnow.chat.calls.named_json import find_named_json
from rnow.chat.calls.probe import MIXED, NAME, OTHER, TOOLS, WORDS, Call, Samples, schemas_of
from rnow.chat.calls.python_call import find_python_call
from rnow.chat.calls.shipped import find_shipped
from rnow.chat.calls.tagged import find_tagged

# A new form is a module that derives itself from samples, and a line here.
FORMS: Mapping[str, Callable[[Samples], Form | None]] = {
    "messages to functions": find_channels,
    "one JSON object": find_json_object,
    "a bare JSON object": find_bare_json,
    "a name, then JSON": find_named_json,
    "tags": find_tagged,
    "braces": find_braces,
    "Python": find_python_call,
    "the tokenizer's own": find_shipped,
}


def find_form(samples: Samples) -> Form | None:
    """Return the form that reads every sample as what it was made of; None if none does."""
    for find in FORMS.values():
        form = find(samples)
        if form is not None and _reads_all(form, samples):
            return form
    return None


def _reads_all(form: Form, samples: Samples) -> bool:
    written: list[tuple[str | None, Sequence[Call]]] = [
        (samples.words, [(NAME, WORDS)]),
        (samples.other, [(OTHER, WORDS)]),
        (samples.empty, [(NAME, {})]),
        (samples.two, [(NAME, WORDS), (OTHER, WORDS)]),
        (samples.mixed, [(NAME, MIXED)]),
    ]
    return all(
        text is None or _read(form, samples, text) == [(name, dict(a)) for name, a in calls]
        for text, calls in written
    )


def _read(form: Form, samples: Samples, text: str) -> list[tuple[str, dict[str, Any]]]:
    calls = read_calls(
        form,
        samples.thinking.reopened(text),
        thinking=samples.thinking,
        schemas=schemas_of(TOOLS),
        stopped=True,
    )
    return [(call.name, dict(call.arguments)) for call in calls if call.error is None]
