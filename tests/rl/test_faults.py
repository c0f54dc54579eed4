"""The check for known faults: SAPO has none, and each faulty variant of the formula is found by the checks that it should fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.objectives import OBJECTIVES, soft_gate_loss
from rl.objectives.faults import CHECKS, find_faults
from rl.objectives.soft import SIGMOID
from rl.sapo import sapo_loss

ROOT = Path(__file__).resolve().parents[2]


def variant(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    fault: str = "",
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    num_sequences: int | None = None,
) -> Tensor:
    """SAPO written once more, with one fault by name."""
    if fault != "low precision":
        new, old = (x if x.dtype == torch.float64 else x.float() for x in (new, old))
    A = advantages[:, None].to(new.dtype)
    old = old if fault == "old with gradient" else old.detach()
    z = new - old if fault == "mask at the end" else new.masked_fill(~mask, 0) - old.masked_fill(~mask, 0)
    r = (z if fault == "no clamp" else z.clamp(-20, 20)).exp()
    if fault == "sequence ratio":
        r = ((z * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp().expand_as(z)
    if fault == "clip too":
        r = torch.where(A > 0, r.clamp(max=1.2), r.clamp(min=0.8))
    if fault == "exchanged τ":
        tau_pos, tau_neg = tau_neg, tau_pos
    tau = torch.where(A > 0, tau_pos, tau_neg)
    if fault == "τ not read":
        tau = torch.where(A > 0, 1.0, 1.05).to(tau.dtype)
    f = torch.sigmoid(tau * (r - 1)) * (1 if fault == "no 4/τ" else 4 / tau)
    if fault == "gate without − 1":
        f = torch.sigmoid(tau * r) * 4 / tau
    if fault == "detached gate":
        f = f.detach() * r
    A = {"no A": torch.ones_like(A), "A twice": A.square(), "A and a constant": A + 0.1 * (A == 0)}.get(fault, A)
    value = -f * A if fault != "maximised" else f * A
    value = value * mask if fault == "mask at the end" else value.masked_fill(~mask, 0)
    if fault == "token mean":
        return value.sum() / mask.sum().clamp(min=1)
    length = mask.sum(1) if fault == "no tokens, 0 / 0" else mask.sum(1).clamp(min=1)
    if fault == "padded length":
        length = torch.full_like(length, mask.shape[1])
    return (value.sum(1) / length).sum() / (len(mask) if fault == "own N" else num_sequences or len(mask))


def faults(objective: object) -> set[str]:
    return {result.check.name for result in find_faults(objective) if not result.holds}


def test_sapo_has_none_of_the_known_faults():
    assert faults(sapo_loss) == set()


@pytest.mark.parametrize("objective", [variant, partial(soft_gate_loss, shape=SIGMOID)], ids=["variant", "soft gate"])
def test_the_same_formula_written_otherwise_has_none_either(objective: object):
    assert faults(objective) == set()


SHAPE = {"gate", "token_ratio", "temperatures_read", "temperatures_by_sign", "no_clip", "low_precision"}
"""Checks of the gradient off-policy. A gate of another shape fails all of them."""

FOUND_BY = {
    "maximised": {"sign"},
    "no 4/τ": {"scale"},
    "gate without − 1": SHAPE | {"scale"},
    "no A": {"advantage", "zero_advantage"},
    "A twice": {"advantage"},
    "A and a constant": {"zero_advantage"},
    "token mean": {"sequence_mean", "microbatches"},
    "padded length": {"sequence_mean"},
    "sequence ratio": {"token_ratio", "overflow"},
    "detached gate": SHAPE | {"scale"},
    "τ not read": {"temperatures_read"},
    "exchanged τ": {"temperatures_by_sign"},
    "clip too": SHAPE,
    "no clamp": {"overflow"},
    "mask at the end": {"outside_mask"},
    "old with gradient": {"old_detached"},
    "no tokens, 0 / 0": {"empty_sequence"},
    "own N": {"microbatches"},
    "low precision": {"low_precision"},
}


@pytest.mark.parametrize("fault", FOUND_BY)
def test_a_fault_is_found_by_the_checks_that_it_should_fail(fault: str):
    assert faults(partial(variant, fault=fault)) == FOUND_BY[fault]


def test_every_check_finds_some_fault_and_has_a_name_of_its_own():
    names = [check.name for check in CHECKS]
    assert set().union(*FOUND_BY.values()) == set(names)
    assert len(names) == len(set(names))


def test_another_objective_is_not_taken_for_sapo():
    assert "gate" in faults(OBJECTIVES["sapo_log"])
    assert {"sequence_mean", "no_clip", "gate"} <= faults(OBJECTIVES["dapo"])


def test_a_detached_gate_is_shown_with_its_weights_beside_the_right_ones():
    [gate] = [r for r in find_faults(partial(variant, fault="detached gate")) if r.check.name == "gate"]
    # r · f(r) / f(1) with f(r) = 4 σ(r − 1): ½ · .7551, 2 · 1.4621, 3 · 1.7616, 5 · 1.9640
    assert gate.comparison.measured == pytest.approx([0.3775, 2.9242, 5.2848, 9.8201], abs=1e-4)
    assert gate.comparison.expected == pytest.approx([0.4700, 1.5729, 1.2599, 0.3533], abs=1e-4)


def test_without_num_sequences_microbatches_cannot_add_up():
    def mine(new, old, advantages, mask, *, tau_pos, tau_neg):
        return sapo_loss(new, old, advantages, mask, tau_pos=tau_pos, tau_neg=tau_neg)

    [fault] = [result for result in find_faults(mine) if not result.holds]
    assert fault.check.name == "microbatches"
    assert fault.comparison.measured == pytest.approx([3.0, 1.5, 1.5])  # N / B: 3 / 1, 3 / 2
    assert fault.comparison.note == "it takes no num_sequences, so it cannot know the whole minibatch"


def test_a_response_without_tokens_may_be_left_out_of_the_mean_by_a_function_without_counts():
    def mine(new, old, advantages, mask, *, tau_pos, tau_neg):
        return sapo_loss(
            new, old, advantages, mask, tau_pos=tau_pos, tau_neg=tau_neg, num_sequences=max(1, int(mask.any(1).sum()))
        )

    assert faults(mine) == {"microbatches"}


def test_an_exception_in_one_check_is_a_fault_of_this_check_alone():
    def mine(new, *args, **options):
        if new.dtype != torch.float64:
            raise TypeError("float64 only")
        return sapo_loss(new, *args, **options)

    [fault] = [result for result in find_faults(mine) if not result.holds]
    assert (fault.check.name, fault.error) == ("low_precision", "raised TypeError: float64 only")


def test_a_function_that_raises_is_refused_in_one_sentence():
    def mine(new, old, advantages, mask):
        raise KeyError("loss_mode")

    message = "the objective failed on a plain batch of two sequences: KeyError: 'loss_mode'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        find_faults(mine)


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ("value", "it returned a tensor of shape (2, 3) as the loss, where a scalar tensor belongs"),
        ("number", "it returned a float as the loss, where a scalar tensor belongs"),
        ("constant", "the objective's loss does not depend on logprobs, its first argument: it has no gradient"),
    ],
)
def test_a_function_that_returns_no_loss_is_refused(result: str, complaint: str):
    returned = {"value": lambda new: new, "number": lambda new: 0.5, "constant": lambda new: new.detach().sum()}[result]
    with pytest.raises(ValueError, match=re.escape(complaint)):
        find_faults(lambda new, old, advantages, mask: returned(new))


def run_command(spec: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rl.objectives.faults", spec]
    variables = os.environ | {"COLUMNS": "220", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_the_command_prints_a_row_for_each_check_and_exits_with_1_for_a_fault(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rl.sapo import sapo_loss as right\n\n"
        "def quarter(*arguments, tau_pos, tau_neg, num_sequences):\n"
        "    return right(*arguments, tau_pos=tau_pos, tau_neg=tau_neg, num_sequences=num_sequences)[0] / 4\n"
    )
    done = run_command(f"{file}:quarter")
    assert done.returncode == 1, done.stderr
    rows = {cells[1].strip(): cells[2:] for line in done.stdout.splitlines() if len(cells := line.split("│")) > 5}
    assert list(rows) == [check.name for check in CHECKS]
    assert [cell.strip() for cell in rows["scale"][:4]] == [
        "FAULT",
        "|gradient| at r = 1, A = ±1, τ = 1",
        "0.25, 0.25",
        "1, 1",
    ]
    assert [name for name, cells in rows.items() if cells[0].strip() == "FAULT"] == ["scale"]
    assert "Without 4/τ every gradient is multiplied by τ/4" in done.stdout
    assert f"1 of {len(CHECKS)} checks found a fault." in done.stdout


def test_the_command_exits_with_0_for_sapo_itself():
    done = run_command("rl/sapo.py:sapo_loss")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"All {len(CHECKS)} checks hold." in done.stdout


def test_the_command_says_in_one_sentence_that_there_is_no_such_file():
    done = run_command("no_such.py:loss")
    assert done.returncode == 2
    assert done.stderr.startswith("error: objective 'no_such.py:loss': there is no file ")
    assert "Traceback" not in done.stderr
