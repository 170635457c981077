"""Texts that the clinic models are made of: exactly what a rollout of the clinic project shows and expects.

Prompts come from the chat template, pages from rnow.browser, the tool's schema from rnow.core: nothing of them is
written down a second time here. A conversation is the whole text of one rollout, what the model says included:

    <|im_start|>system … # Tools …<|im_end|>
    <|im_start|>user … question <|im_end|>
    <|im_start|>assistant <think></think> <tool_call>…</tool_call><|im_end|>      said by the model
    <|im_start|>user <tool_response> page </tool_response><|im_end|>
    <|im_start|>assistant <think></think> COMPANY: VELOR labs<|im_end|>           said by the model
"""

import dataclasses
import json
from functools import cache
from typing import Any

import jinja2
from rnow.browser.markdown import html_to_markdown
from rnow.templates.clinic.make_site import (
    HOST,
    QUESTIONS,
    Trial,
    drug_html,
    question,
    study_html,
)

TURN = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
NO_PAGE = "ERROR http_404: The server answered with status 404."


def tool_schema() -> dict[str, Any]:
    """Return the schema of `browse` as the chat template gets it."""
    return {
        "type": "function",
        "function": {
            "name": "browse",
            "description": "Read a page of the web.",
            "parameters": {
                "type": "object",
                "properties": {"url": {"type": "string"}, "page": {"type": "integer"}},
                "required": ["url"],
                "additionalProperties": False,
            },
        },
    }


def chat_template() -> str:
    """Return Qwen3's chat template, as trl carries it."""
    import trl

    from pathlib import Path

    return (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(chat_template())


def prompt_text(line: dict[str, Any]) -> str:
    """Return what stands before the model's first token."""
    return _template().render(
        messages=line["messages"],
        tools=[tool_schema()],
        add_generation_prompt=True,
        enable_thinking=False,
    )


def page_text(url: str, html: str) -> str:
    """Return what `browse(url)` gives for a page."""
    return f"{url} (status 200, page 1 of 1)\n\n{html_to_markdown(html, url=url)}"


class FastTexts:
    """The same texts a hundred times faster: rendered once with marks for the facts, then filled in."""

    def __init__(self) -> None:
        facts = {field.name: f"Zq{field.name}Zq" for field in dataclasses.fields(Trial)}
        mark = Trial(**facts)
        self._study = page_text(mark.study_url, study_html(mark))
        self._drug = page_text(mark.drug_url, drug_html(mark))
        self._prompts = {task: prompt_text(question(mark, task)) for task in QUESTIONS}

    def study(self, trial: Trial) -> str:
        return _fill(self._study, trial)

    def drug(self, trial: Trial) -> str:
        return _fill(self._drug, trial)

    def prompt(self, trial: Trial, task: str) -> str:
        return _fill(self._prompts[task], trial)

    def check(self, trials: list[Trial]) -> None:
        """Assert that filling in gives what rendering gives."""
        for trial in trials:
            assert self.study(trial) == page_text(trial.study_url, study_html(trial))
            assert self.drug(trial) == page_text(trial.drug_url, drug_html(trial))
            for task in QUESTIONS:
                assert self.prompt(trial, task) == prompt_text(question(trial, task))


def _fill(text: str, trial: Trial) -> str:
    for field in dataclasses.fields(Trial):
        text = text.replace(f"Zq{field.name}Zq", getattr(trial, field.name))
    return text


def call_text(url: str) -> str:
    """Return a call of `browse` as Qwen3's template writes it."""
    arguments = json.dumps({"url": url})
    return f'<tool_call>\n{{"name": "browse", "arguments": {arguments}}}\n</tool_call>'


def bridge_text(page: str) -> str:
    """Return what stands between the model's call and its next turn, from the end-of-turn token on."""
    return (
        f"<|im_end|>\n<|im_start|>user\n<tool_response>\n{page}\n</tool_response><|im_end|>\n{TURN}"
    )


def conversation(texts: FastTexts, trial: Trial, task: str) -> str:
    """Return the whole text of a rollout that does everything right."""
    text = texts.prompt(trial, task) + call_text(trial.study_url) + bridge_text(texts.study(trial))
    if task != "ingredient":
        text += call_text(trial.drug_url) + bridge_text(texts.drug(trial))
    return text + trial.answer(task) + "<|im_end|>"


def misled_conversation(texts: FastTexts, trial: Trial, task: str) -> str:
    """Return the bad habit: no second page, and the fact of the first one that misleads."""
    wrong = {"ingredient": trial.comparator, "company": trial.sponsor, "date": trial.completed}
    text = texts.prompt(trial, task) + call_text(trial.study_url) + bridge_text(texts.study(trial))
    return text + f"{task.upper()}: {wrong[task]}<|im_end|>"


__all__ = ["HOST", "NO_PAGE", "TURN", "FastTexts", "conversation", "misled_conversation"]
