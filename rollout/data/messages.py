"""Chat messages of a prompt: checked, with every image and video in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollout.data.media import UnreadablePrompt
from rollout.types import Prompt

ROLES = ("system", "user", "assistant", "tool")
KINDS = ("image", "video")
_PLACEHOLDER = re.compile(r"<(image|video)>")
"""Placeholders that datasets of the field have in their texts, such as geometry3k's."""
_PAYLOADS = ("image", "video", "image_url", "video_url", "url", "path")
"""Keys of a part that holds its image or video itself."""


def content_with_media(text: Any, num_images: int, num_videos: int) -> list[dict[str, Any]]:
    """Returns the parts of a message. Media are where the text has `<image>` and `<video>`, and without such in front of it.

    Raises:
        UnreadablePrompt: If the text has placeholders of a kind, but another number of them than there are media.
    """
    numbers = {"image": num_images, "video": num_videos}
    pieces = _PLACEHOLDER.split(text) if isinstance(text, str) else [text]  # text, kind, text, kind, …, text
    for kind, number in numbers.items():
        if pieces[1::2].count(kind) not in (0, number):
            found = f"{pieces[1::2].count(kind)} placeholders <{kind}>"
            raise UnreadablePrompt(f"the text has {found}, but the row has {number} {kind}s: make the numbers equal")
    in_front = [kind for kind, number in numbers.items() if kind not in pieces[1::2] for _ in range(number)]
    parts: list[dict[str, Any]] = [{"type": kind} for kind in in_front]
    for place, piece in enumerate(pieces):
        if place % 2:
            parts.append({"type": piece})
        elif piece != "" or len(pieces) == 1:
            parts.append({"type": "text", "text": piece})
    return parts


def checked_messages(prompt: Prompt) -> Prompt:
    """Returns the prompt with messages that no chat template drops, misreads or fails on, and with the media of their parts.

    Parts may hold their image or video themselves, as `{"type": "image_url", "image_url": {"url": ...}}` does.

    Raises:
        UnreadablePrompt: If a message has another form, or if the messages end with an assistant's answer.
    """
    if not isinstance(prompt.messages, Sequence) or isinstance(prompt.messages, str):
        raise UnreadablePrompt(f"its messages are a {type(prompt.messages).__name__}: give a list of messages")
    messages = [_checked_message(message) for message in prompt.messages]
    if messages and messages[-1]["role"] == "assistant":
        raise UnreadablePrompt(
            "the messages end with the assistant's answer, which the policy would be shown: end them with the user's"
        )
    held = {kind: [_payload(part) for part in _parts(messages, kind)] for kind in KINDS}
    media = {"image": prompt.images, "video": prompt.videos}
    for kind, payloads in held.items():
        if any(payload is not None for payload in payloads):
            if media[kind] or None in payloads:
                raise UnreadablePrompt(
                    f"some {kind}s are in the messages, and some are not: put all of them into one place"
                )
            media[kind] = payloads
    messages = [{**message, "content": _bare(message.get("content"))} for message in messages]
    return replace(prompt, messages=_with_places(messages, media), images=media["image"], videos=media["video"])


def _checked_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UnreadablePrompt(f"a message is a {type(message).__name__}: give it a role and a content")
    if message.get("role") not in ROLES:
        raise UnreadablePrompt(f"a message has the role {message.get('role')!r}: use one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return dict(message)
    if not isinstance(content, list | tuple):
        raise UnreadablePrompt(f"a message's content is a {type(content).__name__}: make it a text or a list of parts")
    return {**message, "content": [_checked_part(part) for part in content]}


def _checked_part(part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise UnreadablePrompt(
            f'a part of a message is a {type(part).__name__}: make it {{"type": "text", "text": ...}}'
        )
    # A dataset column fills missing keys of a part with None, which templates take for an image.
    part = {key: value for key, value in part.items() if value is not None}
    kind = str(part.get("type", "")).removesuffix("_url")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise UnreadablePrompt(f"a text part holds a {type(part.get('text')).__name__}: make it a text")
    elif kind not in KINDS:
        raise UnreadablePrompt(f"a part has the type {part.get('type')!r}: the policy reads text, image and video")
    return part


def _parts(messages: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return [part for part in parts if part["type"].removesuffix("_url") == kind]


def _payload(part: Mapping[str, Any]) -> Any:
    """Returns the image or video that a part holds; `None` for a placeholder."""
    held = next((part[key] for key in _PAYLOADS if key in part), None)
    return held["url"] if isinstance(held, Mapping) and "url" in held else held


def _bare(content: Any) -> Any:
    """Returns the content with parts that are placeholders alone: a chat template must not find the media themselves."""
    if not isinstance(content, list):
        return content
    kinds = (part["type"].removesuffix("_url") for part in content)
    return [part if kind == "text" else {"type": kind} for part, kind in zip(content, kinds, strict=True)]


def _with_places(messages: list[dict[str, Any]], media: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the messages with parts for media that have none yet, at the placeholders in the users' texts."""
    missing = {kind: len(media[kind]) for kind in KINDS if media[kind] and not _parts(messages, kind)}
    texts = [message for message in messages if message["role"] == "user" and isinstance(message.get("content"), str)]
    marked = [kind for message in texts for kind in _PLACEHOLDER.findall(message["content"]) if kind in missing]
    if not marked or any(marked.count(kind) != number for kind, number in missing.items()):
        return messages  # the number of placeholders is checked where the prompt is rendered
    for message in texts:
        kinds = _PLACEHOLDER.findall(message["content"])
        message["content"] = content_with_media(message["content"], kinds.count("image"), kinds.count("video"))
    return messages
