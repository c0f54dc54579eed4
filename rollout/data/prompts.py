"""Lazy sequences of prompts: a dataset row becomes a `Prompt` when it is drawn.

Example:
    dataset = datasets.load_dataset("json", data_files="charts.jsonl", split="train")
    prompts = prompts_from(dataset, column_mapping(answer="label"))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
from PIL import Image

from rollout.data.columns import Unmapped, as_sequence, column_of, template_of
from rollout.data.conversations import is_conversation, messages_of
from rollout.data.frames import open_sampled, video_sources
from rollout.data.media import Fit, FrameSampling, UnreadablePrompt, brief, open_images, open_videos, undecoded_videos
from rollout.data.messages import checked_messages, content_with_media
from rollout.types import Prompt

logger = logging.getLogger(__name__)

GREY = 128
UNMAPPED_ROWS = 20
"""Rows in a row of which `to_prompt` makes no prompt before it is refused."""

ToPrompt: TypeAlias = Callable[[Any], Prompt]
"""Makes a Prompt of a dataset row, the same at each call. Raises `UnreadablePrompt` to skip the row."""

Accept: TypeAlias = Callable[[Prompt], str | None]
"""Returns the reason to refuse a prompt (`"5012 tokens, the context holds 4096"`), or None to accept it."""


class Rows(Protocol):
    """The source of prompts: a `datasets.Dataset`, a list of dicts, or a list of Prompts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Prompts(Sequence[Prompt]):
    """A lazy sequence of prompts, returned by `prompts_from`. Each is made when it is read; a slice is lazy as well."""

    def __init__(
        self, rows: Rows, to_prompt: ToPrompt, indices: Sequence[int], frames: FrameSampling, task: str | None = None
    ) -> None:
        self._rows = rows
        self._to_prompt = to_prompt
        self._indices = indices
        self._frames = frames
        self._task = task
        self._fit: Fit | None = None

    def at(self, places: Sequence[int]) -> Prompts:
        """Returns the prompts at some places, in that order."""
        return self._with(indices=[self._indices[place] for place in places])

    def of_task(self, task: str) -> Prompts:
        """Returns the same prompts as one task of several. `task` replaces theirs, and precedes their ids."""
        return self._with(task=task)

    def shrunk(self, fit: Fit) -> Prompts:
        """Returns the same prompts with pictures no larger than the policy sees them, which `fit` returns.

        A picture's `info["original_size"]` is its size before.
        """
        return self._with(fit=fit)

    def _with(self, **changes: Any) -> Prompts:
        other = copy(self)
        for name, value in changes.items():
            setattr(other, f"_{name}", value)
        return other

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | Prompts:
        if isinstance(index, slice):
            return self._with(indices=self._indices[index])
        row_index = self._indices[index]
        of_task, prefix = ("", "") if self._task is None else (f" of task {self._task!r}", f"{self._task}/")
        try:
            row = self._rows[row_index]
        except UnreadablePrompt:  # the rows are Prompts themselves
            raise
        except Exception as error:  # datasets decodes images here, and damaged files make PIL raise almost anything
            raise UnreadablePrompt(f"row {row_index}{of_task} cannot be read: {brief(error)}") from error
        try:
            prompt = _checked_prompt(row, self._to_prompt)
            return replace(
                prompt,
                id=prefix + (prompt.id or f"row-{row_index}"),
                task=prompt.task if self._task is None else self._task,
                images=open_images(prompt.images, self._fit),
                videos=open_sampled(prompt.videos, self._frames),
            )
        except UnreadablePrompt as error:
            raise type(error)(f"row {row_index}{of_task}: {error}") from error


class SkipLog:
    """Logs why prompts are skipped: the first five, then only every tenth, hundredth, …"""

    def __init__(self) -> None:
        self._count = 0

    def note(self, reason: object) -> None:
        """Counts a skipped prompt, and logs the reason if it is one of the first."""
        self._count += 1
        if self._count <= 5:
            logger.warning("skipped %s", reason)
        elif set(str(self._count)[1:]) == {"0"} and str(self._count)[0] == "1":
            logger.warning("skipped %d prompts; the last: %s", self._count, reason)


def prompts_from(rows: Rows, to_prompt: ToPrompt | None = None, frames: FrameSampling | None = None) -> Prompts:
    """Makes a lazy sequence of prompts.

    Images and videos are opened and decoded when their prompt is drawn; `rollout.data.media` lists the accepted forms.

    Args:
        rows: A `datasets.Dataset`, a list of rows, or a list of Prompts.
        to_prompt: Makes a Prompt of a row, as `column_mapping()` does. Not needed if the rows are Prompts. A Prompt with an empty
            id is named after its row.
        frames: The sampling of a video's frames; default: two for each second, 64 at most.

    Returns:
        A sequence as long as `rows`. Drawing from it raises `UnreadablePrompt`, which names the row and the reason.

    Raises:
        ValueError: If `rows` is a mapping of splits or a stream, or if `to_prompt` reads a column that is missing or returns no
            Prompt.
    """
    if isinstance(rows, Prompts) and to_prompt is None:
        return rows
    if isinstance(rows, Mapping):
        raise ValueError(
            f"expected rows, got a mapping of {', '.join(map(repr, rows))}: choose one, e.g. dataset['train']"
        )
    if not hasattr(rows, "__len__"):
        raise ValueError(
            f"{type(rows).__name__} has no length, so it cannot be shuffled: load it without streaming=True"
        )
    rows = undecoded_videos(rows)
    prompts = Prompts(rows, to_prompt or (lambda row: row), range(len(rows)), frames or FrameSampling())
    _require_one_readable(prompts)
    return prompts


def _require_one_readable(prompts: Prompts) -> None:
    """Draws one prompt, so that a missing column shows before any engine starts. A damaged row shows nothing: the next is drawn.

    Raises:
        ValueError: If none of the first rows can be mapped.
    """
    unmapped: list[Unmapped] = []
    for index in range(len(prompts)):
        try:
            prompts[index]
            return
        except Unmapped as error:
            unmapped.append(error)
        except UnreadablePrompt:
            continue
        if len(unmapped) == UNMAPPED_ROWS:
            break
    if unmapped:
        raise ValueError(str(unmapped[0].__cause__)) from unmapped[0].__cause__


def column_mapping(
    *,
    question: str = "question",
    messages: str | None = None,
    image: str | None = "image",
    video: str | None = None,
    answer: str | None = "answer",
    id: str | None = None,
    task: str = "default",
    task_column: str | None = None,
    system: str | None = None,
    tools: str | None = None,
    template: str | None = None,
    fps: float | str | None = None,
    named: Callable[[str], str] = "column_mapping({}=...)".format,
) -> ToPrompt:
    """Returns a `to_prompt` from the names of columns. The prompt is one user turn: images, videos, question.

    Where the question has `<image>` or `<video>`, one for each, they are in these places. A dot leads into a column:
    `answer="reward_model.ground_truth"`.

    Args:
        question: The column with the text of the question.
        messages: The column with a conversation, instead of `question`: `role` and `content`, or `from` and `value`.
        image: The column with an image, a list of images, or None for a row without; None if no row has an image.
        video: The column with a video, a list of videos or of one's frames, or None for a row without; None if no row has a video.
        answer: The column with the reference answer; None if the reward needs none.
        id: The column with the row's name; None names it after its number.
        task: The task of every prompt.
        task_column: The column with the task of each row, instead of `task`.
        system: The column with the system message.
        tools: The column with the tools that the policy may call, as JSON schemas.
        template: The column with a mapping of variables for the chat template, such as `{"enable_thinking": false}`.
        fps: Frames per second of videos that are lists of frames without a rate, or the column with it.
        named: Spells a parameter in errors, as the command line does.
    """
    columns = {
        **{"question" if messages is None else "messages": question if messages is None else messages},
        **{"image": image, "video": video, "answer": answer, "id": id, "task_column": task_column},
        **{"system": system, "tools": tools, "template": template, "fps": fps if isinstance(fps, str) else None},
    }
    rate = None if isinstance(fps, str) else fps
    return lambda row: _prompt_of(row, columns, task, rate, named)


def _prompt_of(
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
    task: str,
    fps: float | None,
    named: Callable[[str], str],
) -> Prompt:
    """Returns the prompt of a row. Parameters are those of `column_mapping`; `columns` maps their names to columns."""
    needed = ("question", "messages")
    given = {
        name: column_of(row, column, named(name) + ("" if name in needed else ", None if there is none"))
        if column
        else None
        for name, column in columns.items()
    }
    images, videos = as_sequence(given["image"]), video_sources(given["video"], given["fps"] or fps)
    if "messages" in given:
        messages = messages_of(given["messages"], given["system"])
    elif is_conversation(given["question"]):
        raise Unmapped(f"column {columns['question']!r} holds messages, no text: name it by {named('messages')}")
    else:
        content = content_with_media(given["question"], len(images), len(videos))
        messages = messages_of([{"role": "user", "content": content}], given["system"])
    return Prompt(
        id="" if given["id"] is None else str(given["id"]),
        messages=messages,
        images=images,
        videos=videos,
        answer=given["answer"],
        task=str(given["task_column"]) if columns["task_column"] else task,
        columns={name: value for name, value in row.items() if name not in columns.values()},
        template=template_of(given["template"], given["tools"]),
    )


def readable(prompts: Rows, accept: Accept | None = None) -> Iterator[Prompt]:
    """Yields the prompts in order. Logs and skips prompts that cannot be read or that `accept` refuses."""
    prompts, log = prompts_from(prompts), SkipLog()
    for index in range(len(prompts)):
        try:
            yield accepted(prompts[index], accept)
        except UnreadablePrompt as error:
            log.note(error)


def blind(prompt: Prompt) -> Prompt:
    """Replaces every image and every frame by mid-grey of the same size. Accuracy on such prompts comes from the text alone.

    `prompts_from(prompts, blind)` is the blind control of a whole set.
    """
    images = [_grey(image) for image in open_images(prompt.images)]
    videos = [
        replace(video, frames=np.full_like(video.frames, GREY)) for video in open_videos(prompt.videos, FrameSampling())
    ]
    return replace(prompt, images=images, videos=videos)


def _grey(image: Image.Image) -> Image.Image:
    grey = Image.new("RGB", image.size, (GREY, GREY, GREY))
    grey.info["original_size"] = image.info["original_size"]
    return grey


def _checked_prompt(row: Any, to_prompt: ToPrompt) -> Prompt:
    try:
        prompt = to_prompt(row)
    except UnreadablePrompt:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and isinstance(row, Mapping) and error.args[0] not in row:
            raise Unmapped(
                f"to_prompt asks for column {error.args[0]!r}, but the dataset has {', '.join(map(repr, row))}: "
                "name one of these, e.g. column_mapping(question=..., image=..., answer=...)"
            ) from error
        raise Unmapped(f"to_prompt raised {brief(error)}") from error
    if not isinstance(prompt, Prompt):
        raise Unmapped(
            f"expected a Prompt, got a {type(prompt).__name__}: pass a to_prompt that makes one, e.g. column_mapping()"
        )
    return checked_messages(prompt)


def accepted(prompt: Prompt, accept: Accept | None) -> Prompt:
    """Returns the prompt. Raises `UnreadablePrompt` if `accept` refuses it, or cannot render it."""
    if accept is None:
        return prompt
    try:
        reason = accept(prompt)
    except Exception as error:  # from a chat template, a tokenizer or a processor
        reason = f"it cannot be rendered: {brief(error)}"
    if reason:
        raise UnreadablePrompt(f"prompt {prompt.id!r}: {reason}")
    return prompt
