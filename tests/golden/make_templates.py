"""Makes chat_templates.json: what the templates of chat_templates/ make of conversations, by Jinja2 as transformers runs it.

    python3 -m venv /tmp/venv-golden
    /tmp/venv-golden/bin/pip install transformers==5.24.0 jinja2==3.1.6
    /tmp/venv-golden/bin/python tests/golden/make_templates.py

Conversations stand here as clients send them. Before transformers renders one, it is made what templates are written for,
as servers do: a content that is null or missing is empty, an empty list of calls is none, arguments are objects, and a
list of parts stays one only where the template writes all its texts (else they are joined by line feeds; where a template
writes nothing of texts, they become lists). An outcome is a text, or null where transformers refuses.

chat_templates/expressions.jinja has one template a line, each rendered with one conversation. Left out of it is what no
published template was seen to do and the engine does otherwise: printing a range, a method or a namespace, places of views,
defaults of a macro's arguments that are its other arguments, the filters urlencode, wordwrap, pprint, xmlattr and random, and
classes of digits beyond ASCII's.
"""

import copy
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

GOLDEN = pathlib.Path(__file__).resolve().parent
TEMPLATES = GOLDEN / "chat_templates"
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def system(content):
    return {"role": "system", "content": content}


def call(identifier, name, arguments):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(identifier, content):
    return {"role": "tool", "tool_call_id": identifier, "content": content}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


CITY = {"type": "string", "description": 'The city\'s "name", é <b>'}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says the weather.\nFor some days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": CITY,
                    "days": {"type": "integer", "default": 1, "minimum": 0.5},
                    "units": {"type": ["string", "null"], "enum": ["C", "F"], "default": None},
                    "hours": {"type": "array", "items": {"type": "number"}},
                    "options": {"type": "object", "properties": {"items": {"type": "boolean"}}, "required": ["items"]},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]
ARGUMENTS = '{"city": "Zürich", "days": 2.0, "scale": 1e16, "tiny": 1e-7, "unit": null, "ok": true, "l": [1, "a\'"], "o": {}}'
CALLED = [
    user("Weather?"),
    assistant(None, tool_calls=[call("call_0001", "weather", ARGUMENTS)], refusal=None),
    result("call_0001", "sunny, 20 °C"),
]

CONVERSATIONS = {
    "plain": {"messages": [user("Hi")]},
    "system": {"messages": [system(" Be kind. "), user(" Hi\n")]},
    "turns": {"messages": [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]},
    "two questions": {"messages": [user("a"), user("b")]},
    "no generation prompt": {"messages": [user("a"), assistant("b")], "add_generation_prompt": False},
    "tools": {"messages": [system("S"), user("Weather?")], "tools": TOOLS},
    "called": {"messages": CALLED, "tools": TOOLS},
    "several calls": {
        "messages": [
            user("Weather?"),
            assistant("Let me see.", tool_calls=[call("call_0001", "weather", '{"city": "A"}'), call("call_0002", "now", "")]),
            result("call_0001", "rain"),
            result("call_0002", '{"now": "12:00"}'),
            assistant("Rain."),
            user("Thanks"),
        ],
        "tools": TOOLS,
    },
    "called without tools": {"messages": [*CALLED, assistant("Sunny."), user("Thanks")]},
    "no calls": {
        "messages": [user("a"), assistant("b", tool_calls=[]), user("c"), assistant("d", tool_calls=None), user("e")]
    },
    "no content": {"messages": [user("a"), {"role": "assistant"}, user("b"), assistant(None), user("c")]},
    "parts": {"messages": [system("S"), user(parts("one", " two "))]},
    "reasoning": {
        "messages": [
            user("Q"),
            assistant("A", reasoning_content="because\n"),
            user("R"),
            assistant("<think>\nwell\n</think>\n\nB", reasoning=None),
            user("S"),
            assistant("C", thinking="why"),
        ]
    },
    "custom role": {"messages": [{"role": "developer", "content": "D"}, user("a"), {"role": "critic", "content": "C", "name": "n"}]},
    "unicode": {"messages": [user("héllo 日本 😀 e\u0301 \u2028 {{ x }} {% if %}"), assistant("'\"\\"), user("\t\r\n\x00\x7f\u200b")]},
    "empty contents": {"messages": [system(""), user(""), assistant(""), user(" ")]},
    "continued": {"messages": [user("Sure"), assistant("Sure")], "continue_final_message": True},
    "continued behind a space": {"messages": [user("a"), assistant(" Sure, \n")], "continue_final_message": True},
    "continued parts": {"messages": [user("a"), assistant(parts("one", "two"))], "continue_final_message": True},
    "documents and variables": {
        "messages": [user("Q")],
        "variables": {
            "documents": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}],
            "enable_thinking": False,
            "custom": {"depth": {"x": 1.5}},
        },
    },
    "long": {"messages": [user("word " * 60), assistant("b"), user("c" * 199)]},
}


def arguments(value):
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value or "{}")
    except ValueError:
        return value
    return parsed if isinstance(parsed, dict) else value


def normalised(message):
    message = {**message, "content": message.get("content") or ""} if not isinstance(message.get("content"), list) else message
    message = {key: value for key, value in message.items() if value is not None and not (key == "tool_calls" and value == [])}
    for tool_call in message.get("tool_calls", []):
        tool_call["function"]["arguments"] = arguments(tool_call["function"]["arguments"])
    return message


def rendered(template, conversation, messages):
    try:
        texts, _ = render_jinja_template(
            conversations=[copy.deepcopy(messages)],
            tools=conversation.get("tools"),
            chat_template=template,
            add_generation_prompt=conversation.get("add_generation_prompt", not conversation.get("continue_final_message")),
            continue_final_message=conversation.get("continue_final_message", False),
            **{**SPECIAL_TOKENS, **conversation.get("variables", {})},
        )
        # Where a template writes a message twice, what transformers marks its end with stays in it.
        return texts[0].replace("CONTINUE_FINAL_MESSAGE_TAG ", "").replace("CONTINUE_FINAL_MESSAGE_TAG", "")
    except Exception:  # Whatever a template does wrong ends a request of transformers.
        return None


def outcome(template, conversation):
    messages = [normalised(message) for message in copy.deepcopy(conversation["messages"])]
    as_sent = rendered(template, conversation, messages)
    of_text, of_list = (rendered(template, {}, [user(content)]) or "" for content in ("probe", parts("probe")))
    if "probe" in of_list and "probe" not in of_text:
        for message in messages:
            if isinstance(message["content"], str):
                message["content"] = parts(message["content"])
        return rendered(template, conversation, messages)
    lists = [message["content"] for message in messages if isinstance(message["content"], list)]
    if not lists:
        return as_sent
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
    joined = rendered(template, conversation, messages)
    # A list that is written out as one shows its keys.
    is_written = as_sent is not None and all(part["text"].strip() in as_sent for content in lists for part in content)
    return as_sent if is_written and as_sent.count("text") <= (joined or "").count("text") else joined


def main():
    templates = {}
    for path in sorted(TEMPLATES.glob("*.jinja")):
        if path.name != "expressions.jinja":
            source = path.read_bytes().decode()
            templates[path.name] = {name: outcome(source, conversation) for name, conversation in CONVERSATIONS.items()}
    conversation = {"messages": [system("Be kind."), *CALLED]}
    lines = (TEMPLATES / "expressions.jinja").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("{# ") or not line.endswith(" #}")]
    golden = {
        "conversations": CONVERSATIONS,
        "templates": templates,
        "expressions_conversation": conversation,
        "expressions": [[line, outcome(line, conversation)] for line in lines],
    }
    text = json.dumps(golden, indent=1, ensure_ascii=True)
    (GOLDEN / "chat_templates.json").write_text(text + "\n", encoding="utf-8")
    refused = sum(text is None for outcomes in templates.values() for text in outcomes.values())
    print(f"{len(templates)} templates, {len(CONVERSATIONS)} conversations, {refused} refused; {len(lines)} expressions")


if __name__ == "__main__":
    main()
