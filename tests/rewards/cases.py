"""Every verifier that is shipped, with a question, a right answer, and what nonsense may earn at most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import rewards
from rewards import Verifier
from rollout import Completion, Prompt

QUESTION = "How many dogs are in the picture, and what are they doing there?"


@dataclass(frozen=True, kw_only=True)
class Case:
    verifier: Verifier
    right: str
    answer: Any = None
    columns: dict[str, Any] = field(default_factory=dict)
    best: float = 1.0
    floor: float = 0.0
    key: str = ""
    """Characters without which nobody can write a right answer, where it is so short that a random text may be one."""

    @property
    def prompt(self) -> Prompt:
        messages = [{"role": "user", "content": QUESTION}]
        return Prompt(id="p-7", messages=messages, answer=self.answer, columns=self.columns)

    @property
    def completion(self) -> Completion:
        return Completion(text=self.right)


CASES = {
    "exact": Case(verifier=rewards.exact, answer="1764301", right="1764301"),
    "math_answer": Case(verifier=rewards.math_answer, answer="1764301", right=r"\boxed{1764301}"),
    "math_answer, formula": Case(
        verifier=rewards.math_answer, answer=r"\frac{\pi^{17}}{3}", right=r"$\frac{1}{3}\pi^{17}$"
    ),
    "math_answer, set": Case(verifier=rewards.math_answer, answer=r"\{17, 43\}", right=r"\boxed{\{43, 17\}}"),
    "multiple_choice": Case(
        verifier=rewards.multiple_choice,
        answer="B",
        columns={"options": ["a dog that sleeps", "a cat that sleeps"]},
        right="B. a cat that sleeps",
        key="BbCc",  # the letter, or the text of its option
    ),
    "yes_no": Case(verifier=rewards.yes_no, answer="no", right="No, it is not.", key="NnFfIiWw不否没错假无"),
    "numeric": Case(verifier=rewards.numeric(relative=0.001), answer=1764301.25, right="1,764,301.25 kg"),
    "count": Case(verifier=rewards.count, answer=1764301, right="There are 1764301 of them."),
    "clock_time": Case(verifier=rewards.clock_time, answer="7:43:17", right="7:43:17"),
    "box_iou": Case(verifier=rewards.box_iou(threshold=0.5), answer=[112, 251, 377, 489], right="[112, 251, 377, 489]"),
    "point_in_box": Case(verifier=rewards.point_in_box, answer=[112, 251, 377, 489], right='{"point_2d": [300, 300]}'),
    "text_similarity": Case(
        verifier=rewards.text_similarity, answer="NO ENTRY EXCEPT FOR RESIDENTS", right="No entry except for residents"
    ),
    "table_similarity": Case(
        verifier=rewards.table_similarity,
        answer=[["dachshund", "snowdrift"], ["1764301", "9450127"]],
        right="|dachshund|snowdrift|\n|---|---|\n|1764301|9450127|",
    ),
    "json_format": Case(
        verifier=rewards.json_format(schema={"type": "object", "required": ["dogs", "doing"]}),
        right='{"dogs": 5, "doing": "playing"}',
    ),
    "instruction_following": Case(
        verifier=rewards.instruction_following,
        columns={"instructions": {"keywords": ["dachshund", "snowdrift"], "max_words": 20, "bullets": 2}},
        right="- a dachshund\n- a snowdrift",
    ),
    "format_tags": Case(
        verifier=rewards.format_tags(tags=("think", "answer")), right="<think>a</think><answer>b</answer>"
    ),
    "language_matches": Case(  # it looks at the language alone
        verifier=rewards.language_matches, right="There are five dogs, and they are playing in the snow.", floor=1.0
    ),
    "repetition_penalty": Case(verifier=rewards.repetition_penalty, right="There are five dogs.", best=0.0),
    "length_penalty": Case(verifier=rewards.length_penalty, right="There are five dogs.", best=0.0),
}
