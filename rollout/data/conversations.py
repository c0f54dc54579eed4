"""Conversations and tools as datasets of the field write them, as chat messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rollout.data.media import UnreadablePrompt

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "observation", "observations", "tool_response", "function_response", "function"), "tool"),
}
"""Role of the field -> role of a chat template. Others stay as they are."""
CALLS = ("function_call", "tool_call")
"""Roles of messages that are an assistant's call of a tool, as JSON."""
PAIRS = (("human", "user"), ("assistant", "gpt"))
"""Keys of ms-swift's turns, `{"human": ..., "assistant": ...}`."""


def is_conversation(value: Any) -> bool:
    """Returns True for a list of messages, or the JSON text of one."""
    if isinstance(value, str):
        value = from_json(value) if value.lstrip().startswith("[{") else None
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_message, value))


def messages_of(value: Any, system: str | None = None) -> list[dict[str, Any]]:
    """Returns chat messages of a list with `role` and `content`, `from` and `value`, or `human` and `assistant`.

    A message of a role in `CALLS` becomes `tool_calls` of the assistant, together with the assistant's text before it. Texts of the
    assistant in a row are one message, as ms-swift writes a thought and its answer.

    Args:
        value: The list, or its JSON text.
        system: The system message, unless the list begins with one itself.

    Raises:
        UnreadablePrompt: If it is no such list, or a call is not JSON with a name and arguments.
    """
    found = from_json(value) if isinstance(value, str) else value
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list | tuple):
        raise UnreadablePrompt(f"its messages are a {type(value).__name__}: give a list of messages, or its JSON text")
    messages: list[dict[str, Any]] = []
    for message in (each for item in found for each in _turns(item)):
        role = str(message["role"]).replace("-", "_")
        if role not in CALLS:
            message = {**message, "role": ROLES.get(role, message["role"])}
            if messages and _is_plain_text(messages[-1]) and _is_plain_text(message):
                message = {**message, "content": messages.pop()["content"] + message["content"]}
            messages.append(message)
            continue
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        calls = [*messages[-1].get("tool_calls", ()), *_calls(message.get("content"))]
        messages[-1] = {**messages[-1], "tool_calls": calls}
    if system and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def tools_of(value: Any) -> list[dict[str, Any]]:
    """Returns tools as JSON schemas of functions, `{"type": "function", "function": {"name": ...}}`.

    Args:
        value: A list of schemas, with or without their `type`, of texts of such, or the JSON text of a list; or None.

    Raises:
        UnreadablePrompt: If it is something else.
    """
    found = from_json(value) if isinstance(value, str) and value.strip() else value or []
    listed = [found] if isinstance(found, Mapping) else found
    if not isinstance(listed, list | tuple):
        listed = [None]
    tools = [_function(from_json(tool) if isinstance(tool, str) else tool) for tool in listed]
    if None in tools:
        raise UnreadablePrompt(f"its tools are {value!r:.80}: give a list of JSON schemas with names, or its JSON text")
    return [tool if isinstance(value, str) else without_none(tool) for tool in tools if tool]


def text_of(content: Any) -> str:
    """Returns the text of a message's content.

    Raises:
        UnreadablePrompt: If it has other parts than texts.
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise UnreadablePrompt(f"the assistant's answer is not text: {content!r:.80}")
    return "".join(part["text"] for part in parts)


def without_none(value: Any) -> Any:
    """Returns a value without the keys that a dataset's column fills with None."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def from_json(text: str) -> Any:
    """Returns the value of a JSON text; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        value.get(key) is not None for key in ("role", "from", "human", "assistant")
    )


def _is_plain_text(message: Mapping[str, Any]) -> bool:
    """Returns True for a text of the assistant that goes on in its next message."""
    is_text = message["role"] == "assistant" and isinstance(message.get("content"), str)
    return is_text and not message.get("tool_calls") and message.get("loss") is not False


def _turns(item: Any) -> Sequence[dict[str, Any]]:
    """Returns the messages of an item of a list: one, or a user's and an assistant's."""
    if not isinstance(item, Mapping):
        raise UnreadablePrompt(f"a message is a {type(item).__name__}: give it a role and a content")
    item = {key: value for key, value in item.items() if value is not None}
    pairs = [next((key for key in keys if key in item), None) for keys in PAIRS]
    if "role" not in item and "from" not in item and any(pairs):
        roles = zip(("user", "assistant"), pairs, strict=True)
        return [{"role": role, "content": item[key]} for role, key in roles if key is not None]
    message = {key: without_none(value) for key, value in item.items() if key not in ("from", "value", "content")}
    content = item.get("content", item.get("value"))
    parts = [_part(part) for part in content] if isinstance(content, list | tuple) else content
    return [{"role": item.get("from"), **message, "content": parts}]


def _part(part: Any) -> Any:
    """Returns a part of a message; LLaMA-Factory's newer form has every part's text or file in `value`."""
    if not isinstance(part, Mapping) or part.get("value") is None or not isinstance(part.get("type"), str):
        return part
    return {**{key: item for key, item in part.items() if key != "value"}, part["type"]: part["value"]}


def _calls(content: Any) -> list[dict[str, Any]]:
    found = from_json(content) if isinstance(content, str) else without_none(content)
    calls = found if isinstance(found, list) else [found]
    for call in calls:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or "arguments" not in call:
            raise UnreadablePrompt(f"a call of a tool is no JSON with name and arguments: {content!r:.80}")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _function(schema: Any) -> dict[str, Any] | None:
    """Returns the schema of a tool with its type; None if it has no name."""
    if not isinstance(schema, Mapping):
        return None
    tool = dict(schema) if "function" in schema else {"type": "function", "function": schema}
    return tool if isinstance(tool["function"], Mapping) and tool["function"].get("name") else None
