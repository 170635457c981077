"""train.jsonl: what a line may hold, what is said of one that is wrong, and the order of a run."""

import gzip
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from builders import read_prompts
from hypothesis import given
from hypothesis import strategies as st

from rnow.chat.prompt_line import fill_in
from rnow.config.types import DatasetType
from rnow.errors import DataError, Problem
from rnow.records import Prompt

FILE = Path("train.jsonl")
USER = {"role": "user", "content": "Which drug?"}


@pytest.fixture(autouse=True)
def in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the file as it was given: from inside the project that is train.jsonl."""
    monkeypatch.chdir(tmp_path)


def load(
    *entries: Any,
    dataset_type: DatasetType = "distill",
    tool_names: Collection[str] | None = None,
) -> tuple[Prompt, ...]:
    FILE.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return read_prompts(FILE, dataset_type=dataset_type, tool_names=tool_names).prompts


def error_of(
    *entries: Any,
    dataset_type: DatasetType = "distill",
    tool_names: Collection[str] | None = None,
) -> str:
    with pytest.raises(DataError) as caught:
        load(*entries, dataset_type=dataset_type, tool_names=tool_names)
    return str(caught.value)


def error_of_bytes(content: bytes) -> str:
    FILE.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_prompts(FILE)
    return str(caught.value)


# --- what loads


def test_an_entry_becomes_a_prompt() -> None:
    entry = {
        "messages": [{"role": "system", "content": "Browse."}, USER],
        "tools": ["browse"],
        "rewards": ["accuracy"],
        "metadata": {"expected_answer": "aspirin"},
        "variables": {"year": 2024},
        "anything": [1, 2],
    }
    assert load(entry, tool_names=["browse", "search"]) == (
        Prompt(
            index=0,
            line=1,
            messages=({"role": "system", "content": "Browse."}, USER),
            tools=("browse",),
            metadata={"expected_answer": "aspirin"},
            variables={"year": 2024},
            rewards=("accuracy",),
        ),
    )


def test_fields_that_are_absent_or_null_are_empty() -> None:
    null = dict.fromkeys(("tools", "rewards", "metadata", "variables", "docker", "docker_env"))
    absent, given_null = load({"messages": [USER]}, {"messages": [USER], **null})
    assert absent.tools is None
    assert (absent.metadata, absent.variables, absent.rewards) == ({}, {}, ())
    assert given_null.messages == absent.messages
    assert given_null.tools is None


def test_an_empty_list_of_tools_allows_none() -> None:
    assert load({"messages": [USER], "tools": []}, tool_names=["browse"])[0].tools == ()


def test_blank_lines_are_skipped_and_counted() -> None:
    line = json.dumps({"messages": [USER]})
    FILE.write_text(f"\n{line}\n  \n\n{line}")
    assert [(prompt.index, prompt.line) for prompt in read_prompts(FILE).prompts] == [
        (0, 2),
        (1, 5),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_read() -> None:
    line = json.dumps({"messages": [USER]}).encode()
    FILE.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert [prompt.line for prompt in read_prompts(FILE).prompts] == [1, 3]


def test_a_unicode_line_separator_ends_no_line() -> None:
    entry = {"messages": [{"role": "user", "content": "one\u2028two\u0085three"}]}
    FILE.write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
    assert read_prompts(FILE).prompts[0].messages[0]["content"] == "one\u2028two\u0085three"


def test_content_as_a_list_of_texts_becomes_one_text() -> None:
    parts = [{"type": "text", "text": "Of $drug:"}, {"type": "text", "text": "who makes it?"}]
    entry = {"messages": [{"role": "user", "content": parts}], "metadata": {"drug": "X"}}
    assert load(entry)[0].messages[0]["content"] == "Of X:\nwho makes it?"


def test_tool_calls_and_other_keys_of_messages_are_kept() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "browse", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a page", "tool_call_id": "1"},
        {"role": "assistant", "content": "done", "tool_calls": None},
        USER,
    ]
    assert load({"messages": messages})[0].messages == tuple(messages)


def test_tool_names_are_not_checked_where_tools_are_not_known() -> None:
    assert load({"messages": [USER], "tools": ["anything"]}, tool_names=None)[0].tools == (
        "anything",
    )


def test_midtrain_has_texts() -> None:
    assert load({"text": "Once."}, dataset_type="midtrain")[0].messages == ()


def test_containers_are_ignored_with_one_notice_for_the_file() -> None:
    entry = {"messages": [USER], "docker": "local/playwright", "docker_env": {"A": "1"}}
    FILE.write_text((json.dumps(entry) + "\n") * 2 + json.dumps({**entry, "docker_env": {}}))
    loaded = read_prompts(FILE)
    assert len(loaded.prompts) == 3
    assert loaded.notices == (
        "train.jsonl: entries ask for a container (docker in 3, docker_env in 2), which is "
        "ignored: tools run in processes of this machine",
    )


def test_an_empty_docker_env_needs_no_docker() -> None:
    FILE.write_text(json.dumps({"messages": [USER], "docker_env": {}}))
    assert read_prompts(FILE).notices == ()


def test_a_plain_file_has_no_notice() -> None:
    FILE.write_text(json.dumps({"messages": [USER]}))
    assert read_prompts(FILE).notices == ()


# --- templating


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$drug", "aspirin"),
        ("${drug}s", "aspirins"),
        ("$drugs and ${other} and $", "$drugs and ${other} and $"),
        ("$$5 and $$drug and $${drug}", "$$5 and $$drug and $${drug}"),
        ("$$$drug", "$$aspirin"),
        ("$5 ${} ${drug $ drug ${1}", "$5 ${} ${drug $ drug ${1}"),
        ("$n $none $nested", "3 None $drug"),
    ],
)
def test_only_known_names_are_filled_in(text: str, filled: str) -> None:
    values = {"drug": "aspirin", "n": 3, "none": None, "nested": "$drug"}
    assert fill_in(text, values) == filled


@given(st.text())
def test_text_is_untouched_where_no_name_is_known(text: str) -> None:
    assert fill_in(text, {}) == text


def test_variables_win_over_metadata_in_every_message() -> None:
    entry = {
        "messages": [{"role": "system", "content": "$a $b"}, {"role": "user", "content": "${a}"}],
        "metadata": {"a": "metadata", "b": "kept"},
        "variables": {"a": "variable"},
    }
    assert [message["content"] for message in load(entry)[0].messages] == [
        "variable kept",
        "variable",
    ]


# --- what is wrong with a line


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1], "must be a JSON object, not [1]"),
        ({}, "messages is missing; it must be a list with a message at least"),
        ({"messages": []}, "messages is []; it must be a list with a message at least"),
        ({"messages": "hi"}, 'messages is "hi"; it must be a list with a message at least'),
        (
            {"messages": ["hi"]},
            'messages.0 must be an object with role and content, not "hi"',
        ),
        (
            {"messages": [USER, {"content": "x"}]},
            "messages.1.role is missing; it must be one of system, user, assistant, tool",
        ),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            'messages.0.role is "human"; it must be one of system, user, assistant, tool',
        ),
        (
            {"messages": [{"role": [], "content": "x"}]},
            "messages.0.role is []; it must be one of system, user, assistant, tool",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages.0.content is missing; it must be a text",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
            'messages.0.content is null; write "" for an empty text',
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content must be a text, not 5",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "data:"}]}]},
            "messages.0.content.0 is an image; images are not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0 is an image; images are not supported",
        ),
        (
            {"messages": [{"role": "user", "content": ["text"]}]},
            'messages.0.content.0 must be {"type": "text", "text": …}, not "text"',
        ),
        (
            {"messages": [{"role": "user", "content": "\ud83d"}]},
            "messages.0 holds half a character (\\ud83d), which is no text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": {}}]},
            "messages.0.tool_calls must be a list, not {}",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"name": "x"}]}]},
            'messages.0.tool_calls.0 must be {"function": {"name": …, "arguments": …}}, '
            'not {"name": "x"}',
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"function": {"name": "browse", "arguments": "{url}"}}],
                    }
                ]
            },
            'messages.0.tool_calls.0.function.arguments must be a JSON object, not "{url}"',
        ),
        ({"messages": [USER], "tools": "browse"}, 'tools must be a list of names, not "browse"'),
        ({"messages": [USER], "rewards": [1]}, "rewards must be a list of names, not [1]"),
        ({"messages": [USER], "metadata": []}, "metadata must be an object, not []"),
        ({"messages": [USER], "variables": "x"}, 'variables must be an object, not "x"'),
        ({"messages": [USER], "docker": 3}, "docker must be the name of an image, not 3"),
        (
            {"messages": [USER], "docker_env": {"A": "1"}},
            "docker_env requires docker field to be set",
        ),
        (
            {"messages": [USER], "docker": "x", "docker_env": {"A": 1}},
            'docker_env must be an object of texts, not {"A": 1}',
        ),
        (
            {"messages": [USER], "docker": "x", "docker_env": "A=1"},
            'docker_env must be an object of texts, not "A=1"',
        ),
        (
            {"messages": "x" * 100},
            f'messages is "{"x" * 48}…; it must be a list with a message at least',
        ),
    ],
)
def test_wrong_entries(entry: Any, message: str) -> None:
    assert error_of({"messages": [USER]}, entry) == f"train.jsonl:2: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"messages": [}\n',
            "train.jsonl:1: Invalid JSON - Expecting value (column 15)",
        ),
        (b"\n\nnot json\n", "train.jsonl:3: Invalid JSON - Expecting value (column 1)"),
        (b"{}{}", "train.jsonl:1: Invalid JSON - Extra data (column 3)"),
        (b'\n{"a": "\xff"}\n', "train.jsonl:2: is not UTF-8 text (0xff at byte 8)"),
        (
            b"",
            "train.jsonl: File contains no valid JSON lines; "
            "write one JSON object with messages a line",
        ),
        (
            b" \n\r\n",
            "train.jsonl: File contains no valid JSON lines; "
            "write one JSON object with messages a line",
        ),
    ],
)
def test_lines_that_cannot_be_read(content: bytes, message: str) -> None:
    assert error_of_bytes(content) == message


@pytest.mark.parametrize("line", [b"[" * 100_000, b"9" * 10_000])
def test_json_that_is_too_much_for_python_is_an_error_of_its_line(line: bytes) -> None:
    assert error_of_bytes(b"\n" + line).startswith("train.jsonl:2: Invalid JSON - ")


def test_a_folder_is_no_file_of_prompts() -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(Path())
    assert str(caught.value) == ".: cannot be read: Is a directory"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(FILE)
    assert str(caught.value) == (
        "train.jsonl: file not found; write one JSON object with messages a line"
    )
    Path("convert_dataset.py").write_text("open('train.jsonl', 'w')")
    with pytest.raises(DataError) as caught:
        read_prompts(FILE)
    assert str(caught.value) == "train.jsonl: file not found; python convert_dataset.py writes it"
    with pytest.raises(DataError) as caught:
        read_prompts(Path.cwd() / FILE)
    assert str(caught.value) == (
        f"{Path.cwd()}/train.jsonl: file not found; "
        f"cd {Path.cwd()} && python convert_dataset.py writes it"
    )
    with pytest.raises(DataError) as caught:
        read_prompts(Path("val.jsonl"))  # which this converter does not write
    assert str(caught.value) == (
        "val.jsonl: file not found; write one JSON object with messages a line"
    )


@pytest.mark.parametrize(
    ("tool_names", "remedy"),
    [
        (["browse", "search"], "did you mean 'browse'?"),
        (["lookup", "add"], "it has add, lookup"),
        ([], "there is no tool at all; write it, or remove tools from the entry"),
    ],
)
def test_tools_that_do_not_exist(tool_names: list[str], remedy: str) -> None:
    assert error_of({"messages": [USER], "tools": ["brows"]}, tool_names=tool_names) == (
        f"train.jsonl:1: tools.0 is 'brows', which no tool of the project is called; {remedy}"
    )


def test_rl_needs_a_reward() -> None:
    assert error_of({"messages": [USER], "rewards": []}, dataset_type="rl") == (
        "train.jsonl:1: rewards must name one reward at least in dataset_type rl"
    )
    assert load({"messages": [USER], "rewards": ["r"]}, dataset_type="rl")[0].rewards == ("r",)


def test_midtrain_needs_a_text() -> None:
    assert error_of({"messages": [USER]}, {"text": ""}, dataset_type="midtrain") == (
        "train.jsonl:1: text is missing; it must be a text that is not empty\n"
        'train.jsonl:2: text is ""; it must be a text that is not empty'
    )


def test_every_problem_of_an_entry_is_shown() -> None:
    entry = {"messages": [{"role": "x"}], "tools": 3}
    FILE.write_text(json.dumps(entry))
    with pytest.raises(DataError) as caught:
        read_prompts(FILE)
    assert caught.value.problems == (
        Problem(
            file="train.jsonl",
            line=1,
            key="tools",
            message="tools must be a list of names, not 3",
        ),
        Problem(
            file="train.jsonl",
            line=1,
            key="messages.0.role",
            message='messages.0.role is "x"; it must be one of system, user, assistant, tool',
        ),
        Problem(
            file="train.jsonl",
            line=1,
            key="messages.0.content",
            message="messages.0.content is missing; it must be a text",
        ),
    )


def test_errors_beyond_the_fiftieth_entry_are_found_and_many_are_counted() -> None:
    good, bad = {"messages": [USER]}, [{"messages": number} for number in range(25)]
    lines = error_of(*[good] * 60, *bad).splitlines()
    assert len(lines) == 21
    assert lines[0] == "train.jsonl:61: messages is 0; it must be a list with a message at least"
    assert lines[-1] == "… and 5 more problems in train.jsonl"


def test_what_many_entries_have_alike_is_one_line_with_their_number() -> None:
    good, bad = {"messages": [USER], "tools": ["browse"]}, {"messages": [USER], "tools": ["brows"]}
    assert error_of(good, *[bad] * 684, {"messages": []}, tool_names=["browse"]) == (
        "train.jsonl:2: tools.0 is 'brows', which no tool of the project is called; did you mean "
        "'browse'? (so in 684 lines: 2, 3, 4, 5, 6, …)\n"
        "train.jsonl:686: messages is []; it must be a list with a message at least"
    )


def test_a_field_that_looks_like_a_slip_is_told_and_others_are_left_alone() -> None:
    slip = {"messages": [USER], "metdata": {"expected_answer": "Acme"}}
    meant = {"messages": [USER], "metadata": {}, "metdata": 1, "source": "a", "difficulty": 3}
    FILE.write_text("".join(json.dumps(entry) + "\n" for entry in (slip, meant, slip)))
    loaded = read_prompts(FILE)
    assert loaded.notices == (
        "train.jsonl:1: metdata is no field that is read; did you mean 'metadata'? (so in 2 lines: "
        "1, 3)",
    )
    assert {one.severity for one in loaded.warnings} == {"warning"}


def test_fewer_prompts_than_a_batch_are_refused() -> None:
    FILE.write_text(json.dumps({"messages": [USER]}) + "\n")
    with pytest.raises(DataError) as caught:
        read_prompts(FILE, batch_size=4)
    assert str(caught.value) == (
        "train.jsonl: batch_size (4) exceeds training samples (1); set data.batch_size to 1 or "
        "less, or write one JSON object with messages a line"
    )
    assert len(read_prompts(FILE, batch_size=1).prompts) == 1


# --- other forms of files and entries

LINE = json.dumps({"messages": [USER]})
WANTED = "one JSON object a line is wanted"
BY_DATASETS = (
    'python -c "from datasets import load_dataset; load_dataset({kind}, '
    "data_files='train.jsonl', split='train').to_json('prompts.jsonl')\""
)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            json.dumps([{"messages": [USER]}] * 2, indent=1).encode(),
            "is one JSON array; one object a line is wanted: "
            "jq -c '.[]' train.jsonl > prompts.jsonl",
        ),
        (
            json.dumps([{"messages": [USER]}]).encode() + b"\n",
            "is one JSON array; one object a line is wanted: "
            "jq -c '.[]' train.jsonl > prompts.jsonl",
        ),
        (
            json.dumps({"version": 1, "data": [{"messages": [USER]}]}, indent=1).encode(),
            "is one JSON object with the list data; one object a line is wanted: "
            "jq -c '.[\"data\"][]' train.jsonl > prompts.jsonl",
        ),
        (
            "\n".join([json.dumps({"messages": [USER]}, indent=1)] * 2).encode(),
            "has objects over several lines; one object a line is wanted: "
            "jq -c . train.jsonl > prompts.jsonl",
        ),
        *(
            (
                f"{LINE}\n{LINE}\n".encode(codec),
                f"is {name}; save it as UTF-8: iconv -f {name} -t UTF-8 train.jsonl > utf8.jsonl",
            )
            for codec, name in (
                ("utf-16", "UTF-16"),
                ("utf-16-le", "UTF-16LE"),
                ("utf-16-be", "UTF-16BE"),
                ("utf-32", "UTF-32"),
            )
        ),
        (b"PAR1\0\0", f"is a Parquet file; {WANTED}: {BY_DATASETS.format(kind=repr('parquet'))}"),
        (b"ARROW1\0", f"is an Arrow file; {WANTED}: {BY_DATASETS.format(kind=repr('arrow'))}"),
        (
            gzip.compress(LINE.encode(), mtime=0),
            f"is packed with gzip; {WANTED}: gunzip < train.jsonl > prompts.jsonl",
        ),
        (b"PK\x03\x04", f"is a zip archive or a spreadsheet; {WANTED}"),
        (b"SQLite format 3\0", f"is an SQLite database; {WANTED}"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "is a pointer of Git LFS, not the file itself; fetch it: git lfs pull",
        ),
        (
            b"<!DOCTYPE html><html>",
            "is a web page, as a failed download leaves one; download the file again",
        ),
        (
            b'prompt,"gold answer"\r\nWho?,Acme\r\n',
            f"is a CSV table (prompt, gold answer); {WANTED}, with messages made of its columns",
        ),
        (
            b"prompt\tgold\nWho?\tAcme\n",
            f"is a tab-separated table (prompt, gold); {WANTED}, with messages made of its columns",
        ),
    ],
)
def test_a_file_in_another_form_is_told_in_one_line(content: bytes, what: str) -> None:
    assert error_of_bytes(content) == f"train.jsonl: {what}"


CHAT = [{"from": "human", "value": "Hi"}]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (
            {"conversations": CHAT},
            "has conversations where messages are wanted; rename it to messages, and in them from "
            "to role (human: user, gpt: assistant), value to content",
        ),
        (
            {"conversation": [USER]},
            "has conversation where messages are wanted; rename it to messages",
        ),
        (
            {"messages": CHAT},
            "messages have from and value; rename them to role (human: user, gpt: assistant) and "
            "content",
        ),
        ({"prompt": [USER]}, "has prompt where messages are wanted; rename it to messages"),
        (
            {"instruction": "Add.", "output": "3"},
            "has instruction where messages are wanted; write "
            '{"messages": [{"role": "user", "content": <its instruction>}]}',
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "Acme."}]},
            "the last message is the assistant's: the student would go on after an answer that it "
            "reads; remove it, or leave such messages out with data.drop_last_answer: true",
        ),
    ],
)
def test_entries_in_another_form_are_told_once_for_all(entry: dict[str, Any], what: str) -> None:
    assert error_of({"messages": [USER]}, entry) == f"train.jsonl:2: {what}"
    assert error_of(entry, entry, {"messages": 5}) == (
        f"train.jsonl:1: {what} (so in 2 lines: 1, 2)\n"
        "train.jsonl:3: messages is 5; it must be a list with a message at least"
    )


def test_answers_at_the_end_are_left_out_where_that_is_wanted() -> None:
    answer = {"role": "assistant", "content": "Acme."}
    entries = [[USER, answer], [USER, answer, answer], [USER, answer, USER], [USER]]
    FILE.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in entries))
    read = read_prompts(FILE, drop_last_answer=True).prompts
    assert [list(prompt.messages) for prompt in read] == [
        [USER],
        [USER],
        [USER, answer, USER],
        [USER],
    ]
    for drop in (False, True):
        learnt = read_prompts(FILE, dataset_type="sft", drop_last_answer=drop).prompts
        assert [list(prompt.messages) for prompt in learnt] == entries
    FILE.write_text(json.dumps({"messages": [answer]}))
    with pytest.raises(DataError) as caught:
        read_prompts(FILE, drop_last_answer=True)
    assert str(caught.value).startswith("train.jsonl:1: the last message is the assistant's: ")
