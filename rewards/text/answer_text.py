"""Search for the final answer in the text of a response."""

from __future__ import annotations

import re
import unicodedata

from rewards.text.patterns import Pattern
from rollout.types import Completion

TAIL = 1000  # characters that are read from the end: a final answer is short, and regular expressions cost time

_ANSWER_TAG = Pattern(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_ANSWER_PHRASE = Pattern(r"\banswer\b(?:\s+is\b)?\s*:?\s*", re.IGNORECASE)
_BOX = Pattern(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = Pattern(  # includes `x_1 =`, but no other words
    r"(?:[\s,;$]|\\text\{\s*(?:and|or)\s*\}|\\(?:quad|qquad|[,;()])|and|or|[a-z](?:_\{?\w{1,3}\}?)?\s*=)*",
    re.IGNORECASE,
)
_BRACE = Pattern(r"\\.|[{}]", re.DOTALL)  # an escaped brace is one token, so it never counts as a brace


def normalised(text: str) -> str:
    """Returns the text in lower case, with each run of white space as one blank and none at the ends."""
    return " ".join(text.split()).casefold()


def boxed_answers(text: str) -> list[str]:
    r"""Returns the contents of the last `\boxed{...}` and of those right before it: `x=\boxed{1}` and `y=\boxed{2}` are one answer.

    A box that is not closed, as in a cut response, holds `""`.
    """
    found: list[str] = []
    box = _last_box(text)
    while box:
        start, content, _ = box
        found.insert(0, content)
        box = _last_box(text[:start])
        if box and not _BETWEEN_BOXES.fullmatch(text, box[2], start):
            break
    return found


def _last_box(text: str) -> tuple[int, str, int] | None:
    """Returns start, content and end of the last box."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    box, depth = boxes[-1], 1
    for token in _BRACE.finditer(text, box.end()):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return box.start(), text[box.end() : token.start()].strip(), token.end()
    return box.start(), "", len(text)


def answer_part(completion: Completion) -> str:
    """Returns the response without its thoughts; `""` if a thought has no end.

    With `Completion.thinking` the prompt has opened a thought, so the response begins inside it: without `</think>` there is no
    answer, whatever stands in the thought.
    """
    return after_thinking("<think>" + completion.text if completion.thinking else completion.text)


def after_thinking(text: str) -> str:
    """Returns the text after the last `</think>`; `""` if a later thought has no end."""
    _, _, rest = text.rpartition("</think>")
    return "" if "<think>" in rest else rest


def final_answer(text: str) -> str:
    r"""Returns the short answer of a response, thoughts excluded.

    It is the content of the last `\boxed{...}`, else of the last `<answer>...</answer>`, else the text after the last
    "answer is" or "answer:", else the last line.
    """
    text = after_thinking(text)[-TAIL:]
    marked = _marked(text)
    if marked is not None:
        return marked
    lines = text.strip().splitlines()
    phrases = list(_ANSWER_PHRASE.finditer(text))
    if phrases:
        lines = text[phrases[-1].end() :].strip().splitlines()[:1]
    return lines[-1].strip() if lines else ""


def short_answer_or_all(text: str) -> str:
    r"""Returns the content of the last `\boxed{...}` or `<answer>...</answer>`; without one, all text after the thoughts."""
    text = after_thinking(text)
    marked = _marked(text[-TAIL:])
    return text.strip() if marked is None else marked


def _marked(text: str) -> str | None:
    if boxes := boxed_answers(text):
        return ", ".join(boxes)
    tagged = _ANSWER_TAG.findall(text)
    return str(tagged[-1]).strip() if tagged else None


def last_block(text: str) -> str:
    """Returns the last fenced block after the thoughts, closed or cut off; without one, all text after the thoughts.

    Qwen3-VL writes JSON and tables in such blocks.
    """
    pieces = after_thinking(text).split("```")
    if len(pieces) == 1:
        return pieces[0].strip()
    block = pieces[-1] if len(pieces) % 2 == 0 else pieces[-2]
    language, line_end, rest = block.partition("\n")
    return (rest if line_end and len(language.split()) <= 1 else block).strip()


def plain_digits(text: str) -> str:
    """Returns the text with decimal digits of any script (`１７`, `١٧`, `१७`) as 0 to 9."""
    return "".join(str(unicodedata.decimal(letter)) if letter.isdecimal() else letter for letter in text)
