"""What `python -m rewards.check` prints. Responses and errors may hold anything: a terminal is shown what is printable."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewards.types import Score
from rollout.types import Completion, Prompt

QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}
BINS = 10
KINDS = 20  # of errors that are shown
LONGEST_ERROR = 400  # characters
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")  # what differs between two errors of one kind


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion, its score, and the seconds that took; `None` where the call did not come to an end."""

    prompt: Prompt
    completion: Completion
    score: Score
    seconds: float | None


def _judged(scored: Sequence[Scored]) -> list[Scored]:
    return [each for each in scored if each.score.error is None]


def print_summary(console: Console, name: str, scored: Sequence[Scored]) -> None:
    """The reward, each part and the seconds: how many there are, and how they are spread."""
    judged = _judged(scored)
    errors = len(scored) - len(judged)
    share = f"{errors / len(scored):.1%}"
    console.print(Text(f"{printable(name)}: {len(scored)} completions, {errors} without a verdict ({share})"))
    parts = defaultdict(list)
    for each in judged:
        for part, value in each.score.parts.items():
            parts[f"part {printable(part)}"].append(value)
    rewards = [each.score.reward for each in judged]
    seconds = [each.seconds for each in scored if each.seconds is not None]
    _print_spread(console, {"reward": rewards, **parts, "seconds": seconds})
    _print_alike(console, judged)


def _print_spread(console: Console, values: Mapping[str, Sequence[float]]) -> None:
    table = Table("", "number", "mean", "std", *QUANTILES, box=SIMPLE_HEAD, collapse_padding=True)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for name, found in values.items():
        if found:
            numbers = [np.mean(found), np.std(found), *np.quantile(found, list(QUANTILES.values()))]
            table.add_row(Text(name), str(len(found)), *(_short(number) for number in numbers))
    if table.row_count:
        console.print(table)


def _print_alike(console: Console, judged: Sequence[Scored]) -> None:
    """Says of how many prompts nothing can be learnt, for want of a difference."""
    rewards_of = defaultdict(list)
    for each in judged:
        rewards_of[id(each.prompt)].append(each.score.reward)
    several = [rewards for rewards in rewards_of.values() if len(rewards) > 1]
    if several:
        alike = sum(len(set(rewards)) == 1 for rewards in several)
        console.print(
            f"prompts whose responses all got the same reward, and so teach nothing: {alike} of {len(several)}"
        )


def print_guesses(console: Console, num_guessed: int, num_completions: int) -> None:
    """Says for how many completions a reward that counts tokens, as `length_penalty` does, has counted what was guessed."""
    if num_guessed:
        whose = f"of {num_guessed} of {num_completions} completions the number of tokens is not recorded"
        console.print(f"{whose}: guessed, one for every four bytes")


def print_histogram(console: Console, scored: Sequence[Scored]) -> None:
    """How often each reward was given; where there are many different ones, in bins of the same width."""
    found = [each.score.reward for each in _judged(scored)]
    if not found:
        return
    if len(set(found)) <= BINS:
        rows = [(_short(value), count) for value, count in sorted(Counter(found).items())]
    else:
        counts, edges = np.histogram(found, BINS)
        rows = [
            (f"{_short(low)} to {_short(high)}", int(n)) for low, high, n in zip(edges, edges[1:], counts, strict=False)
        ]
    table = Table("reward", "number", "share", "", box=SIMPLE_HEAD)
    for label, count in rows:
        table.add_row(label, str(count), f"{count / len(found):.1%}", "█" * round(30 * count / len(found)))
    console.print(table)


def print_errors(console: Console, scored: Sequence[Scored], num_samples: int) -> None:
    """Errors by kind, the most frequent first: the first message of each, and some of the responses."""
    kinds: dict[str, list[Scored]] = defaultdict(list)
    for each in scored:
        if each.score.error is not None:
            kinds[_VARYING.sub("…", each.score.error[:LONGEST_ERROR])].append(each)
    if not kinds:
        return
    table = Table("number", "error", "responses", box=SIMPLE_HEAD, show_lines=True)
    for found in sorted(kinds.values(), key=len, reverse=True)[:KINDS]:
        shown = "\n".join(f"{printable(each.prompt.id)}: {_excerpt(each)}" for each in found[:num_samples])
        table.add_row(str(len(found)), Text(printable(str(found[0].score.error)[:LONGEST_ERROR])), Text(shown))
    console.print("errors", table, sep="\n")


def print_slowest(console: Console, scored: Sequence[Scored], num_samples: int, together: bool) -> None:
    """The calls that took longest; where a call is about a group, each of its completions has the whole time."""
    came_back = [(each.seconds, each) for each in scored if each.seconds is not None]
    slowest = sorted(came_back, key=lambda pair: pair[0], reverse=True)[:num_samples]
    table = Table("seconds", "prompt", "reward", "response", box=SIMPLE_HEAD)
    for seconds, each in slowest:
        table.add_row(f"{seconds:.4f}", Text(printable(each.prompt.id)), _given(each), Text(_excerpt(each)))
    if table.row_count:
        what = "groups" if together else "calls"
        console.print(f"slowest {what} (a process's first has its imports in it)", table, sep="\n")


def print_references(console: Console, scored: Sequence[Scored], num_samples: int) -> None:
    """What the reference answers got, and those that got less than the best of them."""
    found = [each.score.reward for each in _judged(scored)]
    best = max(found, default=0.0)
    worse = [each for each in scored if each.score.error is not None or each.score.reward < best]
    console.print(f"reference answers as responses: {len(scored)}, best reward {_short(best)}, {len(worse)} got less")
    _print_spread(console, {"reward": found})
    table = Table("reward", "prompt", "reference answer", "error", box=SIMPLE_HEAD)
    for each in worse[:num_samples]:
        error = Text(printable((each.score.error or "")[:LONGEST_ERROR]))
        table.add_row(_given(each), Text(printable(each.prompt.id)), Text(_excerpt(each)), error)
    if table.row_count:
        console.print(table)


def _given(each: Scored) -> str:
    return _short(each.score.reward) if each.score.error is None else "error"


def _short(number: float) -> str:
    """Returns a number in at most seven characters, as far as it is of a usual size."""
    size = abs(number)
    if size and not 0.001 <= size < 10_000:
        return f"{number:.0e}"
    decimals = 3 if size < 10 else 2 if size < 100 else 1
    return f"{number:.{decimals}f}".rstrip("0").rstrip(".")


def _excerpt(each: Scored, length: int = 100) -> str:
    text = each.completion.text
    return printable(repr(text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"))


def printable(text: str) -> str:
    """Returns the text without what would act on a terminal, or cannot be written to it."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)
