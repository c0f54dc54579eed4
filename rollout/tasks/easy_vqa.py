"""easy-VQA: questions about one coloured shape in a generated 64x64 picture (PyPI `easy-vqa`, MIT).

The package splits the data: 4,000 pictures to train on, 1,000 others to test on. Its yes/no questions can be answered without the
picture: "yes if the question has a 'no' or 'not', else no" is right in 82 %. Dropping questions until each form has as many "yes"
as "no" still leaves 64 %, since "yes" then goes with shapes and "no" with colours. So `yes_no_balanced` keeps as many "yes" as "no"
of *every wording*: no rule over the text does better than 50 %. On the other questions, blind chance is 1/3 (shape) and 1/8
(colour).
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Literal, NamedTuple

import easy_vqa as package
import numpy as np
from datasets import Dataset, Features, Image, Value

from rollout.data.prompts import column_mapping

Split = Literal["train", "test"]
Questions = Literal["color_and_shape", "yes_no_balanced", "mixed"]

SHAPES = frozenset({"circle", "rectangle", "triangle"})

to_prompt = column_mapping(id="id", task_column="kind")


class _Row(NamedTuple):
    number: int
    question: str
    answer: str
    image_id: int

    @property
    def kind(self) -> str:
        if self.answer in ("yes", "no"):
            return "yes_no"
        return "shape" if self.answer in SHAPES else "color"


def easy_vqa(split: Split, *, questions: Questions = "mixed") -> Dataset:
    """Returns one of the balanced sets of questions, always the same rows in the same shuffled order.

    Args:
        split: `"train"` or `"test"`.
        questions: `"color_and_shape"` (10,168 in train, 2,537 in test), `"yes_no_balanced"` (10,280 and 2,480), or
            both: `"mixed"`.

    Returns:
        Columns `id`, `image` (RGB, decoded when a row is read), `question`, `answer` (one word), `image_id` and
        `kind`: `"color"`, `"shape"` or `"yes_no"`, which `to_prompt` makes the task.

    Raises:
        ValueError: If `split` or `questions` is not one of these.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if questions not in ("color_and_shape", "yes_no_balanced", "mixed"):
        raise ValueError(f"questions must be 'color_and_shape', 'yes_no_balanced' or 'mixed', got {questions!r}")
    rng = np.random.default_rng(0)
    rows = _read(split)
    chosen: list[_Row] = []
    if questions != "yes_no_balanced":
        chosen += [row for row in rows if row.kind != "yes_no"]
    if questions != "color_and_shape":
        chosen += _balanced([row for row in rows if row.kind == "yes_no"], rng)
    return _dataset(split, [chosen[i] for i in rng.permutation(len(chosen))])


def is_negated(question: str) -> bool:
    """Returns True if a yes/no question asks for the absence of something: "is no circle present?"."""
    return re.search(r"\b(no|not)\b", question) is not None


def _read(split: Split) -> list[_Row]:
    read = package.get_train_questions if split == "train" else package.get_test_questions
    return [_Row(number, *row) for number, row in enumerate(zip(*read(), strict=True))]


def _balanced(rows: list[_Row], rng: np.random.Generator) -> list[_Row]:
    """Keeps as many "yes" as "no" of every wording, and as many negated questions as plain ones."""
    by_wording: dict[str, dict[str, list[_Row]]] = defaultdict(lambda: {"yes": [], "no": []})
    for row in rows:
        by_wording[row.question][row.answer].append(row)
    pairs: dict[bool, list[tuple[_Row, _Row]]] = {True: [], False: []}
    for wording, answers in by_wording.items():
        yes, no = ([group[i] for i in rng.permutation(len(group))] for group in answers.values())
        pairs[is_negated(wording)] += zip(yes, no, strict=False)  # the rarer answer decides how many pairs there are
    num_pairs = min(map(len, pairs.values()))
    kept = (pairs[negated][i] for negated in pairs for i in rng.permutation(len(pairs[negated]))[:num_pairs])
    return [row for pair in kept for row in pair]


def _dataset(split: Split, rows: list[_Row]) -> Dataset:
    paths = package.get_train_image_paths() if split == "train" else package.get_test_image_paths()
    text, integer = Value("string"), Value("int64")
    return Dataset.from_dict(
        {
            "id": [f"easy_vqa-{split}-{row.number}" for row in rows],
            "image": [paths[row.image_id] for row in rows],
            "question": [row.question for row in rows],
            "answer": [row.answer for row in rows],
            "kind": [row.kind for row in rows],
            "image_id": [row.image_id for row in rows],
        },
        features=Features(id=text, image=Image(), question=text, answer=text, kind=text, image_id=integer),
    )
