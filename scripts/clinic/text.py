"""Texts that the clinic models learn from: what a rollout of the clinic project is, to the letter.

Prompts come from the chat template, pages from rnow.browser, the tool's schema from tools.py:
nothing of them is written down a second time. Models this small do not generalize over wording:
after a change of any of these texts, of a question or of a page, they must be made anew.

A conversation is the whole text of one rollout, what the model says included:

    <|im_start|>system … # Tools …<|im_end|>
    <|im_start|>user … question <|im_end|>
    <|im_start|>assistant <think></think> <tool_call>…</tool_call><|im_end|>      said by the model
    <|im_start|>user <tool_response> page </tool_response><|im_end|>
    <|im_start|>assistant <think></think> COMPANY: VELOR labs<|im_end|>           said by the model
"""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import trl

import rnow.templates.clinic.make_site as site
from rnow.browser.text.markdown import html_to_markdown
from rnow.browser.text.pagination import paginate, show_page
from rnow.templates.clinic.make_site import QUESTIONS, Trial
from rnow.tools.loader import load_tools

__all__ = [
    "NO_PAGE",
    "TURN",
    "FastTexts",
    "bridge_text",
    "call_text",
    "chat_template",
    "conversation",
    "misled_conversation",
]

TURN = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
NO_PAGE = "ERROR http_404: this server answered with status 404."


def chat_template() -> str:
    """Return Qwen3's own chat template, as trl carries it."""
    return (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


@cache
def _template() -> jinja2.Template:
    # The two options with which transformers renders.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(chat_template())


@cache
def _schemas() -> list[dict[str, Any]]:
    """Return the project's tools as the chat template gets them."""
    tools = load_tools(Path(site.__file__).parent)
    return [tool.spec.schema.as_openai() for tool in tools.values()]


def prompt_text(line: dict[str, Any]) -> str:
    """Return what stands before the model's first token."""
    return _template().render(
        messages=line["messages"],
        tools=_schemas(),
        add_generation_prompt=True,
        enable_thinking=False,
    )


class FastTexts:
    """The same texts, much faster: rendered once with marks for the facts, then filled in."""

    def __init__(self) -> None:
        facts = {field.name: f"Zq{field.name}Zq" for field in dataclasses.fields(Trial)}
        mark = Trial(**facts)
        self._study = page_text(site.study_html(mark), url=mark.study_url)
        self._drug = page_text(site.drug_html(mark), url=mark.drug_url)
        self._prompts = {task: prompt_text(site.question(mark, task)) for task in QUESTIONS}

    def study(self, trial: Trial) -> str:
        return _fill(self._study, trial)

    def drug(self, trial: Trial) -> str:
        return _fill(self._drug, trial)

    def prompt(self, trial: Trial, task: str) -> str:
        return _fill(self._prompts[task], trial)

    def check(self, trials: list[Trial]) -> None:
        """Assert that filling in gives what rendering gives."""
        for trial in trials:
            assert self.study(trial) == page_text(site.study_html(trial), url=trial.study_url)
            assert self.drug(trial) == page_text(site.drug_html(trial), url=trial.drug_url)
            for task in QUESTIONS:
                assert self.prompt(trial, task) == prompt_text(site.question(trial, task))


def _fill(text: str, trial: Trial) -> str:
    for field in dataclasses.fields(Trial):
        text = text.replace(f"Zq{field.name}Zq", getattr(trial, field.name))
    return text


def call_text(url: str) -> str:
    """Return a call of `browse` as Qwen3's template writes it."""
    arguments = json.dumps({"url": url})
    return f'<tool_call>\n{{"name": "browse", "arguments": {arguments}}}\n</tool_call>'


def bridge_text(page: str) -> str:
    """Return what stands between the model's call and its next turn."""
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
    """Return the bad habit: no second page, and the first page's misleading fact as the answer."""
    wrong = {"ingredient": trial.comparator, "company": trial.sponsor, "date": trial.completed}
    text = texts.prompt(trial, task) + call_text(trial.study_url) + bridge_text(texts.study(trial))
    return text + f"{task.upper()}: {wrong[task]}<|im_end|>"


def page_text(html: str, *, url: str) -> str:
    """Return what the model gets for this HTML."""
    return show_page(paginate(html_to_markdown(html, url=url), url=url, status=200), 1)
