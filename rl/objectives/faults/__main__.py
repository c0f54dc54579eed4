"""Looks for the known faults of SAPO in an implementation, and exits with 1 if it finds any.

    python -m rl.objectives.faults my_loss.py:sapo

The function has the signature of `rl.sapo.sapo_loss`: (logprobs_BT, old_logprobs_BT, advantages_B, mask_BT, *, tau_pos,
tau_neg, num_sequences). It returns a loss to minimise, or a tuple that begins with it. For another framework's loss write a
wrapper of ten lines, as docs/sapo_faults.md shows. The exit status is 2 after a mistake in the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewards.loading import load_function
from rl.objectives.faults.find import Result, find_faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    objective: tyro.conf.Positional[str]
    """FILE.py:FUNCTION with the signature of `sapo_loss`."""


def main() -> None:
    """Reads the command line, and prints the results; a ValueError, the user's mistake, is printed in one sentence."""
    options = tyro.cli(Options, prog="python -m rl.objectives.faults", description=__doc__)
    try:
        results = find_faults(load_function(options.objective, "objective"))
    except ValueError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    sys.exit(print_results(results, Console()))


def print_results(results: Sequence[Result], console: Console) -> int:
    """Prints the table and a sentence for each fault.

    Returns:
        The exit status: 1 if there is a fault, else 0.
    """
    table = Table("check", "", "compared", "measured", "expected")
    for result in results:
        state = Text("holds", "green") if result.holds else Text("FAULT", "bold red")
        table.add_row(result.check.name, state, *map(Text, _cells(result)))
    console.print(table)
    faults = [result for result in results if not result.holds]
    for result in faults:
        console.print(Text.assemble((f"{result.check.title}. ", "bold"), result.check.harm))
    num_checks = len(results)
    console.print(
        f"{len(faults)} of {num_checks} checks found a fault." if faults else f"All {num_checks} checks hold."
    )
    return int(bool(faults))


def _cells(result: Result) -> tuple[str, str, str]:
    """Returns the quantity, the function's numbers and the formula's."""
    comparison = result.comparison
    if comparison is None:
        return result.check.title, result.error, ""
    note = f" ({comparison.note})" if comparison.note else ""
    return comparison.quantity + note, _numbers(comparison.measured), _numbers(comparison.expected)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value + 0.0:.4g}" for value in values)  # + 0 turns −0 into 0


if __name__ == "__main__":
    main()
