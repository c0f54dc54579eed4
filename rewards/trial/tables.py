"""Tables of `python -m rewards.check`. Responses and errors may hold anything: only printable characters are printed."""

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
KINDS = 20  # kinds of errors in the table
LONGEST_ERROR = 400  # characters
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")  # texts and numbers that differ between errors of one kind


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion and its score."""

    prompt: Prompt
    completion: Completion
    score: Score
    seconds: float | None
    """Seconds of the call; `None` where it did not return."""


def _judged(scored: Sequence[Scored]) -> list[Scored]:
    return [each for each in scored if each.score.problem is None]


def print_summary(console: Console, name: str, scored: Sequence[Scored]) -> None:
    """Prints number and spread of the rewards, of each part and of the seconds."""
    judged = _judged(scored)
    errors = len(scored) - len(judged)
    share = f"{errors / len(scored):.1%}"
    console.print(Text(f"{printable(name)}: {len(scored)} completions, {errors} without a verdict ({share})"))
    if unread := sum(each.score.unread for each in judged):
        console.print(f"responses in which no answer was found: {unread} of {len(judged)}")
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
    """Prints the number of prompts whose responses all have the same reward, which gives no advantage."""
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
    """Prints the number of completions whose number of tokens, used by `length_penalty`, is a guess."""
    if num_guessed:
        missing = f"{num_guessed} of {num_completions} completions have no recorded number of tokens"
        console.print(f"{missing}: guessed, one for every four bytes")


def print_histogram(console: Console, scored: Sequence[Scored]) -> None:
    """Prints the count of each reward, or of equal bins where there are many different rewards."""
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
    """Prints errors by kind, the most frequent first, with the first message and some responses of each."""
    kinds: dict[str, list[Scored]] = defaultdict(list)
    for each in scored:
        if each.score.problem is not None:
            kinds[_VARYING.sub("…", each.score.problem[:LONGEST_ERROR])].append(each)
    if not kinds:
        return
    table = Table("number", "error", "responses", box=SIMPLE_HEAD, show_lines=True)
    for found in sorted(kinds.values(), key=len, reverse=True)[:KINDS]:
        shown = "\n".join(f"{printable(each.prompt.id)}: {_excerpt(each)}" for each in found[:num_samples])
        table.add_row(str(len(found)), Text(printable(str(found[0].score.problem)[:LONGEST_ERROR])), Text(shown))
    console.print("errors", table, sep="\n")


def print_slowest(console: Console, scored: Sequence[Scored], num_samples: int, by_group: bool) -> None:
    """Prints the slowest calls; where one call scores a group, each completion has the time of the group."""
    finished = [(each.seconds, each) for each in scored if each.seconds is not None]
    slowest = sorted(finished, key=lambda pair: pair[0], reverse=True)[:num_samples]
    table = Table("seconds", "prompt", "reward", "response", box=SIMPLE_HEAD)
    for seconds, each in slowest:
        table.add_row(f"{seconds:.4f}", Text(printable(each.prompt.id)), _given(each), Text(_excerpt(each)))
    if table.row_count:
        unit = "groups" if by_group else "calls"
        console.print(f"slowest {unit} (the first of a process includes its imports)", table, sep="\n")


def print_references(console: Console, scored: Sequence[Scored], num_samples: int) -> None:
    """Prints the rewards of the reference answers, and those with less than the best."""
    found = [each.score.reward for each in _judged(scored)]
    best = max(found, default=0.0)
    worse = [each for each in scored if each.score.problem is not None or each.score.reward < best]
    console.print(f"reference answers as responses: {len(scored)}, best reward {_short(best)}, {len(worse)} got less")
    _print_spread(console, {"reward": found})
    table = Table("reward", "prompt", "reference answer", "error", box=SIMPLE_HEAD)
    for each in worse[:num_samples]:
        error = Text(printable((each.score.problem or "")[:LONGEST_ERROR]))
        table.add_row(_given(each), Text(printable(each.prompt.id)), Text(_excerpt(each)), error)
    if table.row_count:
        console.print(table)


def _given(each: Scored) -> str:
    return _short(each.score.reward) if each.score.problem is None else "error"


def _short(number: float) -> str:
    """Returns a number in at most seven characters."""
    size = abs(number)
    if size and not 0.001 <= size < 10_000:
        return f"{number:.0e}"
    decimals = 3 if size < 10 else 2 if size < 100 else 1
    return f"{number:.{decimals}f}".rstrip("0").rstrip(".")


def _excerpt(each: Scored, length: int = 100) -> str:
    text = each.completion.text
    return printable(repr(text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"))


def printable(text: str) -> str:
    """Returns the text with unprintable characters, which a terminal may obey, replaced by `·`."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)
