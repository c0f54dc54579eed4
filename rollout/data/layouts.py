r"""Mappings for public datasets: a published row becomes a Prompt, with a sentence about the answer's form.

Example:
    prompts = prompts_from(read_rows("hiyouga/geometry3k", "train"), geometry3k)

Each docstring names the columns and the verifier of `rewards` for the answer. Other columns stay in `Prompt.columns`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from rollout.data.chat_rows import chat_rows
from rollout.data.media import UnreadablePrompt, open_images
from rollout.data.prompts import ToPrompt
from rollout.types import Prompt

Row = Mapping[str, Any]

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
LETTER = r"Please reason step by step, and put the letter of the right option within \boxed{}."
NUMBER_OR_WORDS = r"Please reason step by step, and put your final answer, a number or a few words, within \boxed{}."
COUNT = r"Please put the number within \boxed{}."
BOXES = 'Answer with its box in JSON: [{"bbox_2d": [left, top, right, bottom], "label": "..."}]'
TEXT = "Answer with the text alone."

IDS = ("id", "pid", "question_id", "ID")
"""Columns with the name of a row. The first that exists is used."""
NUM_MMMU_IMAGES = 7
_PLACEHOLDER = re.compile(r"<image ?(\d*)>")


def geometry3k(row: Row) -> Prompt:
    """Geometry3K (`hiyouga/geometry3k`): `images`, `problem` with `<image>` in place of each image, and `answer` in LaTeX.

    Verifier: `math_answer`.
    """
    question = _asked(row["problem"], BOXED)
    used = ("problem", "images", "answer")
    return _prompt(row, "geometry3k", question, row["answer"], images=row["images"], used=used)


def mathvista(row: Row) -> Prompt:
    """MathVista (`AI4Math/MathVista`, split `testmini`): `decoded_image`, `question`, `choices`, `answer`, `unit`, `precision`,
    `answer_type`.

    The prompt of a free answer states its type, decimals and unit. The answer of a question with choices is the text of one; the
    choices become the column `options`.

    Verifier: `first_readable(multiple_choice, math_answer, text_similarity(threshold=1.0))`.

    Raises:
        UnreadablePrompt: If the answer is not published, as in the split `test`.
    """
    choices = list(row["choices"] or [])
    question = _asked(row["question"], *([LETTER] if choices else [_mathvista_form(row), BOXED]), options=choices)
    used = ("question", "decoded_image", "image", "answer", "choices")
    image = _either(row, "decoded_image", "image")
    return _prompt(row, "mathvista", question, row["answer"], images=image, used=used, options=choices)


def mathvision(row: Row) -> Prompt:
    """MathVision (`MathLLMs/MathVision`): `decoded_image`, `question` with `<image1>` in place of the image, `options`, and
    `answer`, a letter if there are options.

    Verifier: `first_readable(multiple_choice, math_answer)`.
    """
    options = list(row["options"] or [])
    question = _asked(row["question"], LETTER if options else BOXED, options=options)
    used = ("question", "decoded_image", "image", "answer", "options")
    image = _either(row, "decoded_image", "image")
    return _prompt(row, "mathvision", question, row["answer"], images=image, used=used, options=options)


def mmmu(row: Row) -> Prompt:
    """MMMU (`MMMU/MMMU`, a subset for each subject): `image_1` to `image_7`, `question` with `<image 1>`, `options` and `answer`.

    `options` is a list, or the text of one. An open question has none, and its answer may be the text of a list of answers.

    Verifier: `first_readable(multiple_choice, math_answer, text_similarity(threshold=1.0))`.

    Raises:
        UnreadablePrompt: If the answer is not published, as in the split `test`, or the options cannot be read.
    """
    options = _as_list(row["options"])
    if options is None:
        raise UnreadablePrompt(f"its options are not a list: {row['options']!r:.80}")
    answers = None if options else _as_list(row["answer"])
    question = _asked(row["question"], LETTER if options else NUMBER_OR_WORDS, options=options)
    names = [f"image_{number}" for number in range(1, NUM_MMMU_IMAGES + 1)]
    images = [row["image_1"], *(row.get(name) for name in names[1:])]
    used = ("question", "answer", "options", *names)
    return _prompt(row, "mmmu", question, answers or row["answer"], images=images, used=used, options=options)


def chartqa(row: Row) -> Prompt:
    """ChartQA (`HuggingFaceM4/ChartQA`): `image`, `query`, and `label`, a list of one answer.

    Verifier: `first_readable(numeric(relative=0.05), text_similarity(threshold=1.0))`, its relaxed accuracy.
    """
    label = row["label"]
    answer = label[0] if isinstance(label, list | tuple) and label else label
    question = _asked(row["query"], NUMBER_OR_WORDS)
    return _prompt(row, "chartqa", question, answer, images=row["image"], used=("query", "image", "label"))


def countbench(row: Row) -> Prompt:
    """CountBenchQA (`nielsr/countbenchqa`, `vikhyatk/CountBenchQA`): `image`, `question` and `number`.

    Verifier: `count`.
    """
    question = _asked(row["question"], COUNT)
    used = ("question", "image", "number")
    return _prompt(row, "countbench", question, row["number"], images=row["image"], used=used)


def refcoco(row: Row) -> Prompt:
    """RefCOCO, RefCOCO+ and RefCOCOg (`lmms-lab/RefCOCO`): `image`, `bbox` `[left, top, width, height]` in pixels, and `answer`.

    The row's `answer` is a list of expressions for the content of the box. The prompt names the first. The reference answer is the
    box as `[left, top, right, bottom]` in thousandths of the picture. The row's `question` stays a column.

    Verifier: `box_iou`, or `box_iou(threshold=0.5)` for the usual accuracy.

    Raises:
        UnreadablePrompt: If the picture cannot be opened, there is no expression, or the box has no area.
    """
    image, expressions = row["image"], row["answer"]
    expressions = [expressions] if isinstance(expressions, str) else list(expressions or [])
    left, top, width, height = row["bbox"]
    if not expressions:
        raise UnreadablePrompt("it has no expression to look for")
    [opened] = open_images([image])
    scale_x, scale_y = 1000 / opened.width, 1000 / opened.height
    box = [left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y]
    box = [round(min(max(float(edge), 0.0), 1000.0), 1) for edge in box]
    if not (box[0] < box[2] and box[1] < box[3]):
        raise UnreadablePrompt(
            f"its box {list(row['bbox'])} has no area in a picture of {opened.width} × {opened.height}"
        )
    question = _asked(f"Locate {expressions[0]}.", BOXES)
    return _prompt(row, "refcoco", question, box, images=opened, used=("image", "bbox", "answer"))


def ocrbench(row: Row) -> Prompt:
    """OCRBench (`echo840/OCRBench`): `image`, `question`, and `answer`, a list of right texts.

    Verifier: `text_similarity`.
    """
    answer = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
    question = _asked(row["question"], TEXT)
    return _prompt(row, "ocrbench", question, answer, images=row["image"], used=("question", "image", "answer"))


def gsm8k(row: Row) -> Prompt:
    """GSM8K (`openai/gsm8k`, subset `main`): `question`, and `answer`, which ends in `#### 72`. The whole is the column `solution`.

    Verifier: `math_answer`.

    Raises:
        UnreadablePrompt: If the answer has no `####`.
    """
    solution, question = row["answer"], _asked(row["question"], BOXED)
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise UnreadablePrompt(f"its answer does not end in '#### NUMBER': {solution[-40:]!r}")
    answer = answer.strip().replace(",", "")
    return _prompt(row, "gsm8k", question, answer, used=("question", "answer"), solution=solution)


def aime(row: Row) -> Prompt:
    """AIME (`math-ai/aime25`, `HuggingFaceH4/aime_2024`; with capitals `Maxwell-Jia/AIME_2024`): `problem` and `answer`, 0 to 999.

    Verifier: `math_answer`.
    """
    question = _asked(_either(row, "problem", "Problem"), BOXED)
    answer = str(_either(row, "answer", "Answer"))
    return _prompt(row, "aime", question, answer, used=("problem", "Problem", "answer", "Answer"))


def reasoning_gym(row: Row) -> Prompt:
    """reasoning-gym: an item of `reasoning_gym.create_dataset(...)` is `question`, `answer`, a text, and `metadata`.

    Verifier: `math_answer` for numbers, else `text_similarity(threshold=1.0)`, which is equality. Tasks with several right answers
    have their own scorer: `lambda prompt, completion: dataset.score_answer(answer, entry)`.

    Raises:
        UnreadablePrompt: If the item has no answer.
    """
    question, metadata = _asked(row["question"], BOXED), row["metadata"] or {}
    prompt = _prompt(row, "reasoning_gym", question, row["answer"], used=("question", "answer"))
    source, index = metadata.get("source_dataset"), metadata.get("source_index")
    return prompt if source is None or index is None else replace(prompt, id=f"{source}-{index}")


LAYOUTS: dict[str, ToPrompt] = {
    mapping.__name__: mapping
    for mapping in (
        geometry3k,
        mathvista,
        mathvision,
        mmmu,
        chartqa,
        countbench,
        refcoco,
        ocrbench,
        gsm8k,
        aime,
        reasoning_gym,
        chat_rows,
    )
}
"""Layouts by the name that `--layout` takes."""


def _asked(question: str, *asks: str, options: Sequence[str] = ()) -> str:
    """Returns the question, its lettered options, and the requests about the answer's form, in lines."""
    lettered = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lettered, *filter(None, asks)])


def _prompt(
    row: Row, task: str, question: str, answer: Any, *, used: Sequence[str], images: Any = (), **columns: Any
) -> Prompt:
    """Returns a prompt of one user turn.

    Args:
        row: The row.
        task: The layout's name.
        question: The text, with `<image>` in place of each image.
        answer: The reference answer.
        used: Columns of the row that are no columns of the prompt.
        images: One image, or a list, in which None holds a place.
        columns: More columns of the prompt.
    """
    if answer is None or answer in ("", "?"):
        raise UnreadablePrompt("it has no answer: some splits are published without")
    content, shown = _with_images(question, images)
    return Prompt(
        id=str(next((row[name] for name in IDS if row.get(name) is not None), "")),
        messages=[{"role": "user", "content": content}],
        images=shown,
        answer=answer,
        task=task,
        columns={name: value for name, value in row.items() if name not in used} | columns,
    )


def _with_images(text: str, images: Any) -> tuple[list[dict[str, str]], list[Any]]:
    """Returns the parts of a turn, and the images in their order.

    `<image>` is the next image, `<image 2>` and `<image2>` the second, at each occurrence. A placeholder without an image stays
    text. Images without a placeholder come first.

    Args:
        text: The question.
        images: One, or a list in which None holds a place.
    """
    given = list(images) if isinstance(images, list | tuple) else [images]
    parts: list[dict[str, str]] = []
    shown: list[int] = []
    upcoming, end, words = 0, 0, ""
    for match in _PLACEHOLDER.finditer(text):
        words += text[end : match.start()]
        end = match.end()
        index = int(match[1]) - 1 if match[1] else upcoming
        upcoming += not match[1]
        if 0 <= index < len(given) and given[index] is not None:
            parts += [*_text(words), {"type": "image"}]
            shown.append(index)
            words = ""
        else:
            words += match[0]
    parts += _text(words + text[end:])
    first = [index for index, image in enumerate(given) if image is not None and index not in shown]
    return [*({"type": "image"} for _ in first), *parts], [given[index] for index in (*first, *shown)]


def _text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}] if words else []


def _mathvista_form(row: Row) -> str:
    """Returns MathVista's sentence about an answer's form."""
    unit = f" The unit is {row['unit']}." if row.get("unit") else ""
    kind, precision = row["answer_type"], row.get("precision")
    if kind == "integer":
        return "The answer is an integer." + unit
    if kind == "float" and precision:
        places = int(precision)
        return f"Round the answer to {places} decimal place{'s' if places > 1 else ''}." + unit
    return ("The answer is a list in brackets." if kind == "list" else "") + unit


def _either(row: Row, *names: str) -> Any:
    """Returns the value of the first of these columns that the row has.

    Raises:
        KeyError: If it has none of them. Names the first.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    return row[names[0]]


def _as_list(value: Any) -> list[Any] | None:
    """Returns a list, or the list that a text contains as Python or JSON; None if it contains none."""
    if isinstance(value, list | tuple):
        return list(value)
    for read in (ast.literal_eval, json.loads):
        try:
            found = read(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(found, list | tuple):
            return list(found)
    return None
