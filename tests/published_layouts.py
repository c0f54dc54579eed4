"""Public layouts: for each a few rows as they are published, and what is to become of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import ClassLabel, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from rewards import Verifier, box_iou, count, first_readable, math_answer, multiple_choice, numeric, text_similarity
from rollout import Prompt
from rollout.data import layouts

STRING, INTEGER, FLOAT, IMAGE = Value("string"), Value("int64"), Value("float64"), ImageFeature()
SAME_TEXT = text_similarity(threshold=1.0)
CHOICE_OR_MATH = first_readable(multiple_choice, math_answer, SAME_TEXT)


def image(color: str = "red", size: tuple[int, int] = (200, 100)) -> dict[str, Any]:
    """As the hub's parquet files have it."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


class Layout(NamedTuple):
    """A dataset as it is published, with some rows.

    `said` is a right and a wrong response to each row, `told` a part of what each is asked.
    """

    to_prompt: Callable[..., Prompt]
    verifier: Verifier
    features: dict[str, Any]
    rows: list[dict[str, Any]]
    answers: list[Any]
    said: list[tuple[str, str]]
    told: list[str]


LAYOUTS = {
    "geometry3k": Layout(
        layouts.geometry3k,
        math_answer,
        {"images": List(IMAGE), "problem": STRING, "answer": STRING, "id": INTEGER, "choices": List(STRING)},
        [
            {
                "images": [image()],
                "problem": "<image>Find $x$.",
                "answer": r"2 \sqrt { 221 }",
                "id": 7,
                "choices": ["1"],
            },
            {"images": [image()], "problem": "Find y.", "answer": "8.5", "id": 8, "choices": []},
        ],
        [r"2 \sqrt { 221 }", "8.5"],
        [(r"\boxed{2\sqrt{221}}", r"\boxed{2}"), (r"\boxed{\frac{17}{2}}", r"\boxed{85}")],
        ["Find $x$.\nPlease reason step by step", "Find y.\nPlease"],
    ),
    "mathvista": Layout(
        layouts.mathvista,
        CHOICE_OR_MATH,
        {
            "pid": STRING,
            "question": STRING,
            "image": STRING,
            "decoded_image": IMAGE,
            "choices": List(STRING),
            "unit": STRING,
            "precision": FLOAT,
            "answer": STRING,
            "question_type": STRING,
            "answer_type": STRING,
            "metadata": {"source": STRING},
            "query": STRING,
        },
        [
            {
                **{
                    "pid": "1",
                    "question": "How high?",
                    "image": "images/1.jpg",
                    "decoded_image": image(),
                    "choices": None,
                },
                **{
                    "unit": "m",
                    "precision": 1.0,
                    "answer": "1.2",
                    "question_type": "free_form",
                    "answer_type": "float",
                },
                **{"metadata": {"source": "FigureQA"}, "query": "Hint: ..."},
            },
            {
                **{"pid": "2", "question": "Which?", "image": "images/2.jpg", "decoded_image": image(), "unit": None},
                **{
                    "choices": ["(A) 145°", "(B) 35°"],
                    "precision": None,
                    "answer": "35°",
                    "question_type": "multi_choice",
                },
                **{"answer_type": "text", "metadata": {"source": "Geometry3K"}, "query": "Hint: ..."},
            },
            {
                **{
                    "pid": "3",
                    "question": "Born when?",
                    "image": "images/3.jpg",
                    "decoded_image": image(),
                    "choices": None,
                },
                **{
                    "unit": None,
                    "precision": None,
                    "answer": "[0, 5]",
                    "question_type": "free_form",
                    "answer_type": "list",
                },
                **{"metadata": {"source": "KVQA"}, "query": "Hint: ..."},
            },
        ],
        ["1.2", "35°", "[0, 5]"],
        [(r"\boxed{1.2}", r"\boxed{12}"), (r"\boxed{B}", r"\boxed{A}"), (r"\boxed{[0, 5]}", r"\boxed{[5, 0]}")],
        [
            "How high?\nRound the answer to 1 decimal place. The unit is m.\nPlease",
            "Which?\nA. (A) 145°\nB. (B) 35°\nPlease reason step by step, and put the letter",
            "Born when?\nThe answer is a list in brackets.\n",
        ],
    ),
    "mathvision": Layout(
        layouts.mathvision,
        CHOICE_OR_MATH,
        {
            **{"id": STRING, "question": STRING, "options": List(STRING), "image": STRING, "decoded_image": IMAGE},
            **{"answer": STRING, "solution": STRING, "level": INTEGER, "subject": STRING},
        },
        [
            {
                **{
                    "id": "4",
                    "question": "Which piece?\n<image1>",
                    "options": ["A", "B", "C"],
                    "image": "images/4.jpg",
                },
                **{"decoded_image": image(), "answer": "C", "solution": None, "level": 1, "subject": "logic"},
            },
            {
                **{"id": "5", "question": "How many cubes? <image1>", "options": [], "image": "images/5.jpg"},
                **{"decoded_image": image(), "answer": "31", "solution": None, "level": 2, "subject": "counting"},
            },
        ],
        ["C", "31"],
        [(r"\boxed{C}", r"\boxed{B}"), (r"\boxed{31}", r"\boxed{13}")],
        [
            "\nA. A\nB. B\nC. C\nPlease reason step by step, and put the letter",
            "\nPlease reason step by step, and put your",
        ],
    ),
    "mmmu": Layout(
        layouts.mmmu,
        CHOICE_OR_MATH,
        {
            **{"id": STRING, "question": STRING, "options": STRING, "explanation": STRING, "answer": STRING},
            **{f"image_{number}": IMAGE for number in range(1, 8)},
            "question_type": STRING,
        },
        [
            {
                **{"id": "validation_Art_1", "question": "<image 1> Who painted it?", "explanation": "", "answer": "B"},
                **{"options": "['Monet', \"Manet's son\"]", "question_type": "multiple-choice"},
                **{f"image_{number}": image() if number == 1 else None for number in range(1, 8)},
            },
            {
                **{"id": "validation_Math_2", "question": "Compare <image 2> with <image 1>.", "explanation": ""},
                **{"options": "[]", "answer": "['0.5', '1/2']", "question_type": "open"},
                **{
                    f"image_{number}": image("red" if number == 1 else "blue") if number < 3 else None
                    for number in range(1, 8)
                },
            },
        ],
        ["B", ["0.5", "1/2"]],
        [(r"\boxed{B}", r"\boxed{A}"), (r"\boxed{1/2}", r"\boxed{2}")],
        [
            " Who painted it?\nA. Monet\nB. Manet's son\nPlease",
            ".\nPlease reason step by step, and put your final answer, a",
        ],
    ),
    "chartqa": Layout(
        layouts.chartqa,
        first_readable(numeric(relative=0.05), SAME_TEXT),
        {
            "image": IMAGE,
            "query": STRING,
            "label": List(STRING),
            "human_or_machine": ClassLabel(names=["human", "machine"]),
        },
        [
            {"image": image(), "query": "How much?", "label": ["45%"], "human_or_machine": 0},
            {"image": image(), "query": "More?", "label": ["Yes"], "human_or_machine": 1},
        ],
        ["45%", "Yes"],
        [(r"\boxed{46%}", r"\boxed{50%}"), (r"\boxed{yes}", r"\boxed{no}")],
        ["How much?\nPlease", "More?\nPlease"],
    ),
    "countbench": Layout(
        layouts.countbench,
        count,
        {"image": IMAGE, "text": STRING, "question": STRING, "number": Value("int32")},
        [{"image": image(), "text": "Three cats", "question": "How many cats are there?", "number": 3}],
        [3],
        [(r"\boxed{3}", r"\boxed{4}")],
        ["How many cats are there?\nPlease put the number"],
    ),
    "refcoco": Layout(
        layouts.refcoco,
        box_iou(threshold=0.5),
        {
            **{"question_id": STRING, "image": IMAGE, "question": STRING, "answer": List(STRING)},
            **{"segmentation": List(Value("float32")), "bbox": List(Value("float32"))},
            **{"iscrowd": Value("int8"), "file_name": STRING},
        },
        [
            {
                **{"question_id": "469306", "image": image(size=(200, 100)), "question": "What is circled?"},
                **{"answer": ["the cat", "left one"], "segmentation": [1.0], "bbox": [20.0, 10.0, 40.0, 80.0]},
                **{"iscrowd": 0, "file_name": "a.jpg"},
            }
        ],
        [[100.0, 100.0, 300.0, 900.0]],  # of 200 × 100 pixels: 20 to 60 across, 10 to 90 down
        [('[{"bbox_2d": [100, 100, 300, 890], "label": "cat"}]', '[{"bbox_2d": [20, 10, 60, 90], "label": "cat"}]')],
        ["Locate the cat.\nAnswer with its box in JSON"],
    ),
    "ocrbench": Layout(
        layouts.ocrbench,
        text_similarity,
        {"dataset": STRING, "question": STRING, "question_type": STRING, "answer": List(STRING), "image": IMAGE},
        [
            {
                **{"dataset": "IIIT5K", "question": "what is written in the image?", "answer": ["CENTRE", "CENTER"]},
                **{"question_type": "Regular Text Recognition", "image": image()},
            }
        ],
        [["CENTRE", "CENTER"]],
        [("Center", "BAR")],
        ["what is written in the image?\nAnswer with the text alone."],
    ),
    "gsm8k": Layout(
        layouts.gsm8k,
        math_answer,
        {"question": STRING, "answer": STRING},
        [{"question": "How many clips?", "answer": "She sold 48/2 = <<48/2=24>>24.\n#### 1,072"}],
        ["1072"],
        [(r"\boxed{1072}", r"\boxed{72}")],
        ["How many clips?\nPlease"],
    ),
    "aime": Layout(
        layouts.aime,
        math_answer,
        {"problem": STRING, "answer": STRING, "id": STRING},
        [{"problem": "Find the sum of all bases.", "answer": "070", "id": "0"}],
        ["070"],
        [(r"\boxed{70}", r"\boxed{7}")],
        ["Find the sum of all bases.\nPlease"],
    ),
    "reasoning_gym": Layout(
        layouts.reasoning_gym,
        first_readable(math_answer, SAME_TEXT),
        {"question": STRING, "answer": STRING, "metadata": {"source_dataset": STRING, "source_index": INTEGER}},
        [
            {
                "question": "How many legs do 3 sheep have?",
                "answer": "12",
                "metadata": {"source_dataset": "leg_counting", "source_index": 5},
            }
        ],
        ["12"],
        [(r"\boxed{12}", r"\boxed{21}")],
        ["How many legs do 3 sheep have?\nPlease"],
    ),
}
