"""The choices of `python -m recipes.select`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rl.data import DataConfig


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """What pass rates a query may have."""

    above: float = 0.0
    """Queries with a pass rate of this or less are dropped: of what is never solved nothing is learnt."""
    at_most: float = 0.9
    """Queries with a pass rate above this are dropped: of 16 samples 15 and 16, as in Qwen3-VL's report."""
    blind_at_most: float = 0.5
    """Queries with a blind pass rate above this are dropped: they can be solved without their pictures. A guess among n choices
    reaches 1/n."""


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """When two queries are the same."""

    picture_bits: int = 4
    """Pictures are the same whose 64-bit perceptual hashes differ in so many bits at most. Scaled and compressed copies differ in 0
    to 4, other photographs in about 30; for generated pictures that differ in details, 0."""
    text_words: int = 5
    """Near-duplicates: texts are compared by all their runs of so many words."""
    text: float = 0.8
    """Near-duplicates: texts are alike if they share so much of these runs (Jaccard)."""
    overlap_words: int = 8
    """Contamination: so many words in a row, where they are not wording that many queries share, are no coincidence."""
    overlap: float = 0.5
    """Contamination: a query has an evaluation prompt's text if so much of it lies in such runs."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(DataConfig):
    """Which queries of a set are worth training on."""

    pass_rates: Path | None = None
    """The file that measure_pass_rate wrote of this data; without one, no query is dropped for its pass rate."""
    blind_pass_rates: Path | None = None
    """The file that measure_pass_rate --blind wrote of this data; queries without pictures are not in it, and stay."""
    against: tuple[str, ...] = ()
    """Evaluation sets that must not be trained on. Each is a source as in data, with the data's columns; or LAYOUT=SOURCE; with
    @SPLIT behind it where it has several."""
    duplicates: bool = True
    """Keeps one of several queries that are alike in pictures, text and answer: the first."""
    run_dir: Path | None = None
    """Where the selection and its report go. Default: a folder in runs/select that is named after the data."""
    output: Path | None = None
    """A .parquet file for the selected rows themselves, with all their columns, pictures embedded. Default: none is written."""
    rate: RateConfig = field(default_factory=RateConfig)
    like: SimilarityConfig = field(default_factory=SimilarityConfig)


def check_selection(config: SelectConfig) -> None:
    """Refuses choices that cannot work, before anything is read.

    Raises:
        ValueError: Names the option, its value and the remedy.
    """
    rate, like = config.rate, config.like
    for name, value, is_sound, bounds in (
        ("rate.above", rate.above, 0 <= rate.above < 1, ">= 0 and below 1"),
        (
            "rate.at_most",
            rate.at_most,
            rate.above < rate.at_most <= 1,
            f"above rate.above = {rate.above} and at most 1",
        ),
        ("rate.blind_at_most", rate.blind_at_most, 0 <= rate.blind_at_most <= 1, "from 0 to 1"),
        ("like.picture_bits", like.picture_bits, 0 <= like.picture_bits < 32, "from 0 to 31: 32 is what chance gives"),
        ("like.text_words", like.text_words, like.text_words >= 1, ">= 1"),
        ("like.text", like.text, 0 < like.text <= 1, "> 0 and at most 1"),
        ("like.overlap_words", like.overlap_words, like.overlap_words >= 1, ">= 1"),
        ("like.overlap", like.overlap, 0 < like.overlap <= 1, "> 0 and at most 1"),
    ):
        if not is_sound:
            raise ValueError(f"{name} must be {bounds}, got {value}")
    if config.output is not None and config.output.suffix != ".parquet":
        raise ValueError(f"output must end in .parquet, got {config.output}")
    if config.pass_rates is None and config.blind_pass_rates is None and not config.against and not config.duplicates:
        raise ValueError("nothing is to be dropped: give pass_rates, blind_pass_rates, against, or leave duplicates on")
