"""Precision that is `auto`: what GPUs and processors give, and how it is printed."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rl.config import LearnerConfig, TrainConfig
from rl.hardware import precision
from rl.hardware.cores import with_threads
from rl.hardware.placement import with_options
from rl.hardware.precision import bfloat16_instructions, derive_dtypes, engine_dtype, learner_dtype
from rl.preflight import check_options, prepare
from rollout.config import RolloutConfig

ZEN_5 = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16 avx512vbmi\n"
SAPPHIRE_RAPIDS = "flags\t\t: avx512_bf16 amx_bf16 amx_tile\n"
AVX2 = "model name\t: with avx512_bf16 in its name\nflags\t\t: fpu sse2 avx2 fma\n"
GRAVITON = "Features\t: fp asimd bf16 i8mm\n"


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest):
    """A processor with these flags; the default is one without bfloat16."""
    file = tmp_path / "cpuinfo"
    file.write_text(getattr(request, "param", AVX2))
    monkeypatch.setattr(precision, "CPU_INFO", file)
    bfloat16_instructions.cache_clear()
    yield
    bfloat16_instructions.cache_clear()


def config(*, gpus: int = 0, per_engine: int = 0, learner: str = "auto", rollout: str = "auto") -> TrainConfig:
    return TrainConfig(
        model="m",
        learner=LearnerConfig(gpus=gpus, dtype=learner),
        rollout=RolloutConfig(gpus_per_engine=per_engine, dtype=rollout),
    )


def derived(made: TrainConfig) -> tuple[str, str]:
    return dtypes(with_options(made, derive_dtypes(made.learner, made.rollout)))


def dtypes(made: TrainConfig) -> tuple[str, str]:
    return made.learner.dtype, made.rollout.dtype


@pytest.mark.parametrize(
    ("processor", "expected"),
    [(ZEN_5, "AVX-512 BF16"), (SAPPHIRE_RAPIDS, "AMX"), (GRAVITON, "Arm's BF16"), (AVX2, None), ("", None)],
    indirect=["processor"],
)
def test_a_processors_flags_name_its_fastest_instructions(expected: str | None) -> None:
    assert bfloat16_instructions() == expected


def test_a_machine_without_a_list_of_flags_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "nowhere")
    assert bfloat16_instructions() is None


@pytest.mark.parametrize(("processor", "expected"), [(ZEN_5, "bfloat16"), (AVX2, "float32")], indirect=["processor"])
def test_on_cpus_both_sides_have_what_the_processor_multiplies_in(expected: str) -> None:
    assert derived(config()) == (expected, expected)
    [engine] = engine_dtype(RolloutConfig(), on_gpus=False)
    [learner] = learner_dtype(LearnerConfig(), on_gpus=False)
    assert engine.value == learner.value == expected


def test_on_gpus_both_sides_have_bfloat16_and_a_side_on_the_cpu_decides_for_both() -> None:
    assert derived(config(gpus=2, per_engine=1)) == ("bfloat16", "bfloat16")
    assert derived(config(gpus=2)) == derived(config(per_engine=1)) == ("float32", "float32")


def test_what_is_set_stays() -> None:
    by_hand = config(learner="bfloat16", rollout="bfloat16")
    assert derive_dtypes(by_hand.learner, by_hand.rollout) == []
    assert derived(config(learner="bfloat16")) == ("bfloat16", "float32")


@pytest.mark.parametrize("processor", [ZEN_5], indirect=True)
def test_it_is_printed_with_the_threads_and_its_reason() -> None:
    found = derive_dtypes(LearnerConfig(), RolloutConfig())
    made = with_options(config(), found)
    where = Console(file=StringIO(), width=200)
    one = replace(made, rollout=replace(made.rollout, threads_per_engine=1))
    with_threads(one, where, found)
    lines = where.file.getvalue().splitlines()
    assert [
        name for line in lines for name in ("learner.dtype", "rollout.dtype", "learner.threads") if name in line
    ] == [
        "learner.dtype",
        "rollout.dtype",
        "learner.threads",
    ]
    assert next(line for line in lines if "rollout.dtype" in line).count("AVX-512 BF16 multiply in it") == 1


def test_a_run_and_the_check_of_its_options_have_the_resolved_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = TrainConfig(model="/no/policy", run_dir=tmp_path / "run")
    assert dtypes(prepare(made)) == ("float32", "float32")
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr("rl.preflight.starting_point", lambda options, quick: seen.append(dtypes(options)))
    check_options(made)
    assert seen == [("float32", "float32")]
