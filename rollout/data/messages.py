"""Chat messages of a prompt: checked, with every image and video in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollout.data.frames import image_source, video_source
from rollout.data.media import UnreadablePrompt
from rollout.types import Prompt

ROLES = ("system", "user", "assistant", "tool")
KINDS = ("image", "video")
PLACEHOLDER = re.compile(r"<(image|video)>")
"""Placeholders that datasets of the field have in their texts, such as geometry3k's."""
_PAYLOADS = ("image", "video", "image_url", "video_url", "url", "path", "bytes")
"""Keys of a part that holds its image or video itself."""


def content_with_media(text: Any, num_images: int, num_videos: int) -> list[dict[str, Any]]:
    """Returns the parts of a message. Media are where the text has `<image>` and `<video>`, and without such in front of it.

    Raises:
        UnreadablePrompt: If the text has placeholders of a kind, but another number of them than there are media.
    """
    if not isinstance(text, str):
        return [{"type": "text", "text": text}]
    in_front = []
    for kind, number in (("image", num_images), ("video", num_videos)):
        marks = PLACEHOLDER.findall(text).count(kind)
        in_front += [{"type": kind}] * (number if _require_equal(kind, marks, 0, number) else 0)
    return in_front + (_split(text) or ([] if in_front else [{"type": "text", "text": text}]))


def checked_messages(prompt: Prompt) -> Prompt:
    """Returns the prompt with messages that no chat template drops, misreads or fails on, and with the media of their parts.

    Parts may hold their image or video themselves, as `{"type": "image_url", "image_url": {"url": ...}}` does.

    Raises:
        UnreadablePrompt: If a message has another form, or if the messages end with an assistant's answer.
    """
    if not isinstance(prompt.messages, Sequence) or isinstance(prompt.messages, str):
        raise UnreadablePrompt(f"its messages are a {type(prompt.messages).__name__}: give a list of messages")
    if not isinstance(prompt.template, Mapping):
        raise UnreadablePrompt(
            f"its template variables are a {type(prompt.template).__name__}: map their names to values"
        )
    messages = [_checked_message(message) for message in prompt.messages]
    if messages and messages[-1]["role"] == "assistant":
        raise UnreadablePrompt(
            "the messages end with the assistant's answer, which the policy would be shown: end them with the user's, or learn "
            "the answer by recipes.cold_start, in Python by rl.sft.demonstrations.demonstrated(to_prompt)"
        )
    held = {kind: [_payload(part) for part in _parts(messages, kind)] for kind in KINDS}
    media = {"image": _listed(prompt.images, "images"), "video": _listed(prompt.videos, "videos")}
    for kind, payloads in held.items():
        if any(payload is not None for payload in payloads):
            if media[kind] or None in payloads:
                raise UnreadablePrompt(
                    f"some {kind}s are in the messages, and some are not: put all of them into one place"
                )
            media[kind] = payloads
    messages = [{**message, "content": _bare(message["content"])} for message in messages]
    for kind in reversed(KINDS):  # in front of a text, images come before videos
        messages = _with_places(messages, kind, len(media[kind]))
    images = [image_source(image) for image in media["image"]]
    return replace(prompt, messages=messages, images=images, videos=[video_source(each) for each in media["video"]])


def _listed(media: Any, name: str) -> Sequence[Any]:
    if not isinstance(media, Sequence) or isinstance(media, str | bytes):
        raise UnreadablePrompt(f"its {name} are a {type(media).__name__}: give a list")
    return media


def _checked_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UnreadablePrompt(f"a message is a {type(message).__name__}: give it a role and a content")
    if message.get("role") not in ROLES:
        raise UnreadablePrompt(f"a message has the role {message.get('role')!r}: use one of {', '.join(ROLES)}")
    # A dataset column fills missing keys of a message with None.
    message = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in message:
        _check_calls(message["tool_calls"])
    content = message.get("content", "" if message.get("tool_calls") else None)
    if isinstance(content, str):
        return {**message, "content": content}
    if not isinstance(content, list | tuple):
        raise UnreadablePrompt(f"a message's content is a {type(content).__name__}: make it a text or a list of parts")
    return {**message, "content": [_checked_part(part) for part in content]}


def _check_calls(calls: Any) -> None:
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise UnreadablePrompt(
            f"the tool_calls of a message are {calls!r:.80}: give a list of {{'function': {{'name': ..., 'arguments': ...}}}}"
        )


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
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part for part in parts if part["type"].removesuffix("_url") == kind]


def _payload(part: Mapping[str, Any]) -> Any:
    """Returns the image or video that a part holds; `None` for a placeholder."""
    source = part.get("source")
    if isinstance(source, Mapping) and ("data" in source or "url" in source):  # as Anthropic's messages have it
        return source["url"] if "url" in source else f"data:{source.get('media_type')};base64,{source['data']}"
    if not any(key in part for key in _PAYLOADS):
        return None
    if part["type"].removesuffix("_url") == "video":
        return video_source({key: value for key, value in part.items() if key != "type"})
    held = next(part[key] for key in _PAYLOADS if key in part)
    return held["url"] if isinstance(held, Mapping) and "url" in held else held


def _bare(content: Any) -> Any:
    """Returns the content with parts that are placeholders alone: a chat template must not find the media themselves."""
    if not isinstance(content, list):
        return content
    kinds = (part["type"].removesuffix("_url") for part in content)
    return [part if kind == "text" else {"type": kind} for part, kind in zip(content, kinds, strict=True)]


def _with_places(messages: list[dict[str, Any]], kind: str, number: int) -> list[dict[str, Any]]:
    """Returns the messages with a part for each of `number` media: at the placeholders, or in front of the user's first text.

    Raises:
        UnreadablePrompt: If the messages have another number of places.
    """
    marks = [sum(PLACEHOLDER.findall(text).count(kind) for text in _texts(message)) for message in messages]
    if _require_equal(kind, sum(marks), len(_parts(messages, kind)), number):
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is None:
            raise UnreadablePrompt(f"no message is the user's, so its {number} {kind}s have no place")
        parts = [{"type": kind}] * number + _as_parts(first["content"])
        return [{**message, "content": parts} if message is first else message for message in messages]
    return [
        {**message, "content": _split_parts(message["content"], kind)} if marked else message
        for message, marked in zip(messages, marks, strict=True)
    ]


def _require_equal(kind: str, marks: int, parts: int, number: int) -> bool:
    """Checks that a text has as many places as there are media. Returns True if it has none, so that media come first.

    Args:
        kind: `image` or `video`.
        marks: Placeholders in the text.
        parts: Other places.
        number: Images or videos.
    """
    if marks + parts == number or not marks + parts:
        return marks + parts < number
    found = f"the text has {marks} placeholders <{kind}>" if marks else f"the messages have {parts} parts for {kind}s"
    found += f" beside {parts} parts for {kind}s" if marks and parts else ""
    raise UnreadablePrompt(f"{found}, but the row has {number} {kind}s: make the numbers equal")


def _texts(message: Mapping[str, Any]) -> list[str]:
    """Returns the texts of a message in which placeholders count: a system message may name them."""
    if message["role"] == "system":
        return []
    return [part["text"] for part in _as_parts(message["content"]) if part["type"] == "text"]


def _as_parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _split_parts(content: Any, kind: str) -> list[dict[str, Any]]:
    parts = []
    for part in _as_parts(content):
        parts += _split(part["text"], kind) if part["type"] == "text" else [part]
    return parts


def _split(text: str, *kinds: str) -> list[dict[str, Any]]:
    """Returns the parts of a text: placeholders of some kinds, or of every kind, and the texts between them."""
    parts, start = [], 0
    for mark in PLACEHOLDER.finditer(text):
        if not kinds or mark[1] in kinds:
            parts += [{"type": "text", "text": text[start : mark.start()]}, {"type": mark[1]}]
            start = mark.end()
    parts.append({"type": "text", "text": text[start:]})
    return [part for part in parts if part.get("text") != ""]
