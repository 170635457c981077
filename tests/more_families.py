"""Small templates in the place of those of families that trl does not have.

Each renders what the family's own template renders around calls and answers, and no more.
"""

import json

CALL = {"url": 'http://clinic.test/?a="b"', "page": 2}

_LOOP = (
    "<s>{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
)
_IM = (
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response>"
    "<|im_end|>\n{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n{{ m.content or '' }}{CALLS}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(calls: str) -> str:
    return _LOOP + _IM.replace("{CALLS}", "{% if m.tool_calls %}" + calls + "{% endif %}")


def each(call: str, separator: str = "") -> str:
    between = "{% if not loop.last %}" + separator + "{% endif %}" if separator else ""
    return "{% for c in m.tool_calls %}" + call + between + "{% endfor %}"


NAMED = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
PAIRS = "{% for k, v in c.function.arguments.items() %}"
TEXT = "{{ v if v is string else v | tojson }}"
_PYTHON = (
    "{{ c.function.name }}(" + PAIRS + "{{ k }}={{ v | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %})"
)

MISTRAL = (
    "<s>{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    '[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] ["
    + each(NAMED[:-1] + ', "id": "{{ c.id }}"}', ", ")
    + "]</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_NAMED = MISTRAL.replace(
    MISTRAL[MISTRAL.index("[TOOL_CALLS]") : MISTRAL.index("</s>")],
    each("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
)
SMOLLM3 = (
    "{% if xml_tools %}<|im_start|>system\nReturn a json object within <tool_call></tool_call>: "
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n'
    "{{ xml_tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SAID = f'"name": "browse", "arguments": {json.dumps(CALL)}'

# family: template, form, the turn that calls browse with CALL
FAMILIES = {
    "Mistral v3": (
        MISTRAL,
        "JsonObject",
        f'[TOOL_CALLS] [{{{_SAID}, "id": "abcdefghi"}}]',
    ),
    "Mistral v13": (
        MISTRAL_NAMED,
        "NamedJson",
        f"[TOOL_CALLS]browse[ARGS]{json.dumps(CALL)}",
    ),
    "Phi-4-mini": (
        chatml("<|tool_call|>[" + each(NAMED, ", ") + "]<|/tool_call|>"),
        "JsonObject",
        f"<|tool_call|>[{{{_SAID}}}]<|/tool_call|>",
    ),
    "Granite": (
        chatml("<|tool_call|>[" + each(NAMED, ", ") + "]"),
        "JsonObject",
        f"<|tool_call|>[{{{_SAID}}}]",
    ),
    "SmolLM3": (
        SMOLLM3,
        "JsonObject",
        f"<tool_call>\n{{{_SAID}}}\n</tool_call>",
    ),
    "DeepSeek V3.1": (
        chatml(
            "<\uff5ctool\u2581calls\u2581begin\uff5c>"
            + each(
                "<\uff5ctool\u2581call\u2581begin\uff5c>{{ c.function.name }}"
                "<\uff5ctool\u2581sep\uff5c>{{ c.function.arguments | tojson }}"
                "<\uff5ctool\u2581call\u2581end\uff5c>"
            )
            + "<\uff5ctool\u2581calls\u2581end\uff5c>"
        ),
        "NamedJson",
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>browse"
        f"<\uff5ctool\u2581sep\uff5c>{json.dumps(CALL)}<\uff5ctool\u2581call\u2581end\uff5c>"
        "<\uff5ctool\u2581calls\u2581end\uff5c>",
    ),
    "Qwen3-Coder": (
        chatml(
            each(
                "\n<tool_call>\n<function={{ c.function.name }}>\n" + PAIRS + "<parameter={{ k }}>"
                "\n" + TEXT + "\n</parameter>\n{% endfor %}</function>\n</tool_call>"
            )
        ),
        "Tagged",
        f"I look.\n<tool_call>\n<function=browse>\n<parameter=url>\n{CALL['url']}\n</parameter>\n"
        "<parameter=page>\n2\n</parameter>\n</function>\n</tool_call>",
    ),
    "GLM 4.7": (
        chatml(
            each(
                "<tool_call>{{ c.function.name }}" + PAIRS + "<arg_key>{{ k }}</arg_key>"
                "<arg_value>" + TEXT + "</arg_value>{% endfor %}</tool_call>"
            )
        ),
        "Tagged",
        f"<tool_call>browse<arg_key>url</arg_key><arg_value>{CALL['url']}</arg_value>"
        "<arg_key>page</arg_key><arg_value>2</arg_value></tool_call>",
    ),
    "MiniMax M2": (
        chatml(
            "<minimax:tool_call>\n"
            + each(
                '<invoke name="{{ c.function.name }}">\n' + PAIRS + '<parameter name="{{ k }}">'
                "" + TEXT + "</parameter>\n{% endfor %}</invoke>\n"
            )
            + "</minimax:tool_call>"
        ),
        "Tagged",
        f'<minimax:tool_call>\n<invoke name="browse">\n<parameter name="url">{CALL["url"]}'
        '</parameter>\n<parameter name="page">2</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    "OLMo 3": (
        chatml("<function_calls>" + each(_PYTHON, "{{ '\\n' }}") + "</function_calls>"),
        "PythonCall",
        f"<function_calls>browse(url={json.dumps(CALL['url'])}, page=2)</function_calls>",
    ),
    "FunctionGemma": (
        chatml(
            each(
                "<start_function_call>call:{{ c.function.name }}{{ '{' }}" + PAIRS + "{{ k }}:"
                "{% if v is string %}<escape>{{ v }}<escape>{% else %}{{ v | tojson | replace("
                "'\"', '<escape>') }}{% endif %}{% if not loop.last %},{% endif %}{% endfor %}"
                "{{ '}' }}"
                "<end_function_call>"
            )
        ),
        "Braces",
        f"<start_function_call>call:browse{{url:<escape>{CALL['url']}<escape>,page:2}}"
        "<end_function_call>",
    ),
}
