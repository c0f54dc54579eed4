"""Search for the final answer in the text of a response."""

from __future__ import annotations

import re

from rewards.text.patterns import Pattern
from rewards.text.typography import plain_typography
from rollout.types import Completion

TAIL = 1000  # characters that are read from the end: a final answer is short, and regular expressions cost time

_ANSWER_TAG = Pattern(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_OTHER_LANGUAGES = r"antwort|réponse|respuesta|resposta|risposta|ответ|정답|답"
_PHRASE = Pattern(  # in plain typography; `the answer is not B` is left to the reader of what follows
    rf"""(?:
    (?<!wrong\s)(?<!incorrect\s)(?<!not\sthe\s)(?<!not\san\s)(?<!n't\sthe\s)
    \b(?:answers?|ans|(?:my|our)\s+(?:options?|choices?|picks?)|the\s+(?:option|choice|pick)|(?:correct|right|best|final|chosen|selected)\s+(?:options?|choices?|letters?|ones?|results?)|{_OTHER_LANGUAGES})\b
        (?:\s+(?:letters?|options?|choices?|correct[ae]?|corretta|finale?))?(?:\s+(?:to|for)\s[^.:?!\n]{{1,60}}?)?["'*_`)\s]{{0,4}}
      (?:\b(?:is|are|was|were|(?:would|should|must|will)\s+be|ist|est|es|é|è)\b[*_ \t]{{0,4}}:?|:|=(?!=)|[-=]>|→|⇒|[-–—]\s)
    |(?:答案|正确选项|答え|正解)\s{{0,3}}(?:应该|应当|应|就)?\s{{0,3}}(?:是|为|選|选|は|:|=)(?!不)\s{{0,3}}:?
    |(?:정답|답)은\s*
    |^[\W_]{{0,8}}ans\.(?=\s)
    |(?:故|应|因此|所以|综上|则|答|本题|此题|我)\s{{0,3}},?\s{{0,3}}(?:选择|选)(?!项|不)\s{{0,3}}:?
    |^[\W_]{{0,8}}(?:the\s+)?(?:final\s+|correct\s+|my\s+)?(?:answer|{_OTHER_LANGUAGES})
        (?:[^\w\n]{{0,8}}$|\s{{1,4}}(?!(?:is|are|to)\b)(?=\S{{1,20}}$))
    |^[\W_]{{0,8}}(?:final|results?|conclusion|结论|结果)[*_ ]{{0,4}}:
    |^[\W_]{{0,8}}(?:最终|正确)?答案(?:[^\w\n]{{0,8}}$|[\s\])]{{0,4}}(?=[（(\[]?[A-Za-z0-9]\S{{0,20}}$))
    )[*_]{{0,3}}\s*""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_JSON_VALUE = Pattern(  # the value of the key `"answer"`
    r"(?:([\"'])((?:(?!\1).){1,300})\1|([-\w.,%/]{1,100}?))\s*(?:\}\s*|,\s*[\"']\w{1,40}[\"']\s*:.*\}\s*)"
)
_NO_CONTENT = Pattern(r"\$\$|\\\[|```\w{0,20}|[-*_#\s]{0,100}")  # a line that opens a formula or a block, or is a rule
_BOX = Pattern(r"\\(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = Pattern(  # includes `x_1 =`, but no other words
    r"(?:[\s,;$]|\\text\{\s*(?:and|or)\s*\}|\\(?:quad|qquad|[,;()])|and|or|[a-z](?:_\{?\w{1,3}\}?)?\s*=)*",
    re.IGNORECASE,
)
_DOUBT = Pattern(r"\b(?:wait|hold\s+on|let\s+me\s+(?:re-?\s?|double[- ]?)?check)\b|等等|等一下", re.IGNORECASE)
_SENTENCE_END = Pattern(r"[.!?。！？)\]}>*`\"'$|]\s*$")
_FENCE = Pattern(r"^[ \t]{0,20}(?:`{3,}|~{3,})|(?<!`)`{3,}(?!`)(?=[ \t]{0,4}\w{0,20}[ \t]{0,4}$)", re.MULTILINE)
_BRACE = Pattern(r"\\.|[{}]", re.DOTALL)  # an escaped brace is one token, so it never counts as a brace
_PHRASE_WORDS = tuple(  # a phrase has one of these, for which `in` is far quicker than an expression
    f"ans option choice pick letter one final result conclusion 答 选 選 结 解 {_OTHER_LANGUAGES.replace('|', ' ')}".split()
)


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


def is_taken_back(behind: str) -> bool:
    """Returns whether the text behind an answer doubts it and is then cut: `But wait, let me check again whether`."""
    doubts = list(_DOUBT.finditer(behind))
    return bool(doubts) and not _SENTENCE_END.search(behind[doubts[-1].end() :][-100:])


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
    r"""Returns the short answer of a response, thoughts excluded, in plain typography.

    It is the content of the last `\boxed{...}`, else of the last `<answer>...</answer>`. Without these it is the line after the
    last phrase such as "answer is", "answer:", "correct option is" or `答案是`, else the last line. Where nothing stands behind the
    phrase, as in a heading, it is the next line that is not empty. It is `""` where a last sentence that was cut takes it back.
    """
    text = after_thinking(text)[-TAIL:]
    marked = marked_answer(text)
    if marked is not None:
        return "" if is_taken_back(marked[1]) else plain_typography(marked[0])
    stated = stated_answer(text)
    if stated is not None:
        return stated[0]
    lines = plain_typography(text).strip().splitlines()
    return lines[-1].strip() if lines else ""


def stated_answer(text: str) -> tuple[str, str] | None:
    """Returns the line after the last answer phrase, in plain typography, and the text behind it; `None` without a phrase."""
    text = plain_typography(text[-TAIL:])
    phrases = list(_PHRASE.finditer(text)) if any(map(text.casefold().__contains__, _PHRASE_WORDS)) else []
    if not phrases:
        return None
    behind = text[phrases[-1].end() :]
    if is_taken_back(behind):
        return "", ""
    line = ""
    while behind.strip() and not line:
        line, _, behind = behind.lstrip().partition("\n")
        line = "" if _NO_CONTENT.fullmatch(line.strip()) else line.strip()
    if line[-1:] == "}" and (value := _JSON_VALUE.fullmatch(line)):
        line = value[2] or value[3]
    if line.count("**") % 2:  # bold type that began before the phrase, or that the phrase has opened
        line = line.removeprefix("**").strip() if line.startswith("**") else line.replace("**", "", 1).strip()
    return line, behind


def short_answer_or_all(text: str) -> str:
    r"""Returns the content of the last `\boxed{...}` or `<answer>...</answer>`; without one, all text after the thoughts."""
    text = after_thinking(text)
    marked = marked_answer(text[-TAIL:])
    if marked is None:
        return text.strip()
    return "" if is_taken_back(marked[1]) else marked[0]


def marked_answer(text: str) -> tuple[str, str] | None:
    r"""Returns the content of the last `\boxed{...}` or `<answer>...</answer>`, and the text behind it; `None` without one."""
    if boxes := boxed_answers(text):
        box = _last_box(text)
        return ", ".join(boxes), text[box[2] :] if box else ""
    tags = list(_ANSWER_TAG.finditer(text))
    return (tags[-1][1].strip(), text[tags[-1].end() :]) if tags else None


def last_block(text: str) -> str:
    """Returns the last fenced block after the thoughts, closed or cut off; without one, all text after the thoughts.

    Qwen3-VL writes JSON and tables in such blocks. A fence stands at the beginning or the end of a line: one inside a text of JSON
    is none.
    """
    pieces = _FENCE.split(after_thinking(text))
    if len(pieces) == 1:
        return pieces[0].strip()
    is_open = len(pieces) % 2 == 0
    if not is_open and is_taken_back(pieces[-1][-TAIL:]):
        return ""
    block = pieces[-1] if is_open else pieces[-2]
    language, line_end, rest = block.partition("\n")
    return (rest if line_end and len(language.split()) <= 1 else block).strip()
