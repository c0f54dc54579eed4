"""Rows as other toolkits write them, recognised by their columns: TRL, verl, EasyR1, ms-swift, LLaMA-Factory, LLaVA.

Example:
    prompts = prompts_from(read_rows("verl/train.parquet"), chat_rows)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rollout.data.columns import Unmapped, as_sequence, template_of, value_at
from rollout.data.conversations import from_json, is_conversation, messages_of, text_of
from rollout.data.frames import RATES, VIDEO_OPTIONS, image_source, video_sources
from rollout.data.media import UnreadablePrompt
from rollout.data.objects import with_objects
from rollout.types import Prompt

Row = Mapping[str, Any]

CONVERSATIONS = ("messages", "conversations", "conversation", "prompt")
"""Columns with a list of messages."""
QUESTIONS = ("prompt", "problem", "question", "query", "instruction")
"""Columns with the text of a question."""
REFERENCES = ("reward_model.ground_truth", "answer", "solution", "ground_truth")
"""Columns with a reference answer."""
RESPONSES = ("completion", "response", "output")
"""Columns with a whole response. It is the reference answer of a row that has no other."""
SYSTEMS = ("system", "system_prompt")
MEDIA = {kind: (f"{kind}s", kind) for kind in ("image", "video", "audio")}
VARIABLES = ("chat_template_kwargs", "apply_chat_template_kwargs")
"""Columns with variables for the chat template, by name."""
TASKS = ("task", "data_source")
DISLIKED = ("label", "kto_tag")
"""Columns that are False for a response not to learn from."""
_NO_COLUMNS = {"id", "tools", "enable_thinking", *SYSTEMS, *VARIABLES, *MEDIA["image"], *MEDIA["video"]}
"""Columns that become other fields of a prompt. Answers stay columns as well: reward functions of other toolkits read them."""
_NAME_THEM = (
    "name the columns by column_mapping(messages=..., answer=...) in place of chat_rows, on the command line by "
    "--columns.messages or --columns.question, and --columns.answer"
)


def chat_rows(row: Row, *, fps: float | str | None = None, demonstrated: bool = False) -> Prompt:
    """Makes a prompt of a row of any of the layouts in docs/data.md.

    Columns of the same meaning must agree. Of questions, one contains the others and is asked. Of reference answers, one is in all
    the others and is the answer. A row of `instruction` and `input` asks both.

    Args:
        row: The row.
        fps: Frames per second of videos that are lists of frames without a rate, or the column with it.
        demonstrated: Appends the row's response to the messages, for supervised learning.

    Raises:
        UnreadablePrompt: If the row has no question, or columns of the same meaning that differ, or audio.
    """
    row = {name: _plain(value) for name, value in row.items()}
    column, messages = _conversation(row)
    template, of_videos = _template(row)
    rate = value_at(row, fps) if isinstance(fps, str) else fps
    rate = next((row[name] for name in RATES if row.get(name) is not None), rate)
    media = {kind: _media(row, kind) for kind in MEDIA}
    if as_sequence(media["audio"]):
        raise UnreadablePrompt("it has audio: the policy reads text, image and video")
    images = [image_source(image) for image in as_sequence(media["image"])]
    messages, boxes = with_objects(messages, row.get("objects"), images)
    answer, response = _agreed_answer(row, REFERENCES), _agreed_answer(row, RESPONSES)
    if demonstrated and messages[-1]["role"] != "assistant" and response is not None:
        messages.append({"role": "assistant", "content": response})
    if demonstrated or (answer is None and response is not None):
        _require_liked(row, messages[-1])
    if answer is None:
        answer = (boxes[0] if len(boxes) == 1 else boxes or None) if response is None else response
    return Prompt(
        id="" if row.get("id") is None else str(row["id"]),
        messages=messages,
        images=images,
        videos=video_sources(media["video"], rate, of_videos),
        answer=answer,
        task=next((row[name] for name in TASKS if isinstance(row.get(name), str)), "default"),
        columns={name: value for name, value in row.items() if name not in {*_NO_COLUMNS, column}},
        template=template,
    )


def _plain(value: Any) -> Any:
    """Returns a value with lists in place of the arrays that pandas makes of them."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return [_plain(item) for item in value.tolist()]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _conversation(row: Row) -> tuple[str, list[dict[str, Any]]]:
    """Returns the column with the question, and the messages that it makes with the row's other columns."""
    asked: dict[str, list[dict[str, Any]]] = {}
    system = next((row[name] for name in SYSTEMS if row.get(name)), None)
    for name in CONVERSATIONS:
        if row.get(name) and (name != "prompt" or is_conversation(row[name]) or not isinstance(row[name], str)):
            asked[name] = messages_of(row[name], system)
    for name in QUESTIONS:
        if name not in asked and (text := _question(row, name)):
            asked[name] = messages_of([*_history(row, name), {"role": "user", "content": text}], system)
    if not asked:
        raise Unmapped(
            f"chat_rows finds no question in the columns {', '.join(map(repr, row))}: it looks for messages in "
            f"{', '.join(CONVERSATIONS)}, and for a text in {', '.join(QUESTIONS)}; {_NAME_THEM}"
        )
    texts = {name: _all_text(messages) for name, messages in asked.items()}
    for name, text in texts.items():
        if all(other in text for other in texts.values()):
            return name, asked[name]
    raise Unmapped(f"the row asks differently in {' and '.join(asked)}; {_NAME_THEM}")


def _question(row: Row, name: str) -> str:
    """Returns the text of a column; an instruction stands before its input."""
    given = (row.get(name), row.get("input") if name == "instruction" else None)
    return "\n".join(text for text in given if isinstance(text, str) and text)


def _history(row: Row, name: str) -> list[dict[str, Any]]:
    """Returns the turns before an `instruction` or `query`: pairs of question and answer."""
    history = row.get("history") if name in ("instruction", "query") else None
    pairs = from_json(history) if isinstance(history, str) and history else history or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UnreadablePrompt(f"its history is no list of pairs of a question and an answer: {history!r:.80}")
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _all_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns the texts of a conversation without its system message."""
    texts: list[str] = []
    for message in (each for each in messages if each["role"] != "system"):
        content = message.get("content")
        parts: list[Any] = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "\n".join(texts)


def _agreed_answer(row: Row, names: Sequence[str]) -> Any:
    """Returns the answer of some columns, None if they have none. Of several, it is the one that is in all the others."""
    answers = {name: _answer(value) for name in names if (value := value_at(row, name)) is not None and value != ""}
    for answer in answers.values():
        whole = re.compile(rf"(?<![\w.+-]){re.escape(str(answer).strip())}(?![\w/]|[.,]\d)")
        if all(str(answer) == str(other) or whole.search(str(other)) for other in answers.values()):
            return answer
    if answers:
        raise Unmapped(f"the row has different answers in {' and '.join(answers)}; {_NAME_THEM}")
    return None


def _answer(value: Any) -> Any:
    """Returns the text of an answer that is a list of messages, as TRL's completions are; any other value as it is."""
    if not is_conversation(value):
        return value
    messages = messages_of(value)
    if len(messages) != 1:
        raise UnreadablePrompt(f"its completion has {len(messages)} messages: put all but the last into the prompt")
    return text_of(messages[0].get("content"))


def _template(row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables for the chat template, and the options of videos that ms-swift writes beside them."""
    given: dict[str, Any] = {}
    for name in VARIABLES:
        given |= template_of(row.get(name))
    if row.get("enable_thinking") is not None:
        given["enable_thinking"] = row["enable_thinking"]
    of_videos = {name: given.pop(name) for name in VIDEO_OPTIONS if name in given}
    return {**given, **template_of(tools=row.get("tools"))}, of_videos


def _media(row: Row, kind: str) -> Any:
    """Returns the value of the column with images, videos or audio."""
    several, one = (row.get(name) for name in MEDIA[kind])
    if _is_empty(several) or _is_empty(one):
        return one if _is_empty(several) else several
    raise Unmapped(f"the row has both {' and '.join(MEDIA[kind])}; {_NAME_THEM}")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | list | tuple | Mapping) and not len(value))


def _require_liked(row: Row, last: Mapping[str, Any]) -> None:
    """Checks that a response is not marked as one to avoid."""
    marks = [name for name in DISLIKED if row.get(name) is False] + (["loss"] if last.get("loss") is False else [])
    if marks:
        raise UnreadablePrompt(f"its {marks[0]} is false: its response is no example to follow")
