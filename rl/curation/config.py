"""Options of `python -m recipes.select`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rl.data import DataConfig


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """The range of pass rates that is kept."""

    above: float = 0.0
    """Drops queries with a pass rate up to this: a query that is never solved gives no gradient."""
    at_most: float = 0.9
    """Drops queries with a pass rate above this: 15 or 16 of 16 samples, as in Qwen3-VL's report."""
    blind_at_most: float = 0.5
    """Drops queries with a blind pass rate above this: they can be solved without their pictures. Guessing among n choices
    reaches 1/n."""


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Thresholds at which two queries are the same."""

    picture_bits: int = 4
    """Most bits in which the 64-bit perceptual hashes of equal pictures differ. Scaled and compressed copies differ in 0 to 4 bits,
    other photographs in about 30. Use 0 for generated pictures that differ in details."""
    text_words: int = 5
    """Near-duplicates: length of the word n-grams that texts are compared by."""
    text: float = 0.8
    """Near-duplicates: smallest share of common n-grams (Jaccard) of equal texts."""
    overlap_words: int = 8
    """Contamination: length of the word n-grams. Boilerplate n-grams, which many queries share, do not count."""
    overlap: float = 0.5
    """Contamination: smallest share of an evaluation prompt's text that must lie in n-grams of the query."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(DataConfig):
    """Selects training queries: not too hard, not too easy, not solvable blind, in no evaluation set, no duplicates."""

    pass_rates: Path | None = None
    """Pass rates of this data, from measure_pass_rate. Without a file no query is dropped for its pass rate."""
    blind_pass_rates: Path | None = None
    """Blind pass rates of this data, from measure_pass_rate --blind. Queries without pictures are not in it and are kept."""
    against: tuple[str, ...] = ()
    """Evaluation sets to exclude from training. Each is SOURCE as in data, with the data's columns, or LAYOUT=SOURCE; followed by
    @SPLIT if it has several splits."""
    duplicates: bool = True
    """Keeps only the first of several queries with equal pictures, text and answer."""
    run_dir: Path | None = None
    """Folder of the selection and its report. Default: a folder in runs/select named after the data."""
    output: Path | None = None
    """A .parquet file for the selected rows with all columns and embedded pictures. Default: none is written."""
    rate: RateConfig = field(default_factory=RateConfig)
    like: SimilarityConfig = field(default_factory=SimilarityConfig)


def check_selection(config: SelectConfig) -> None:
    """Refuses options that cannot work, before anything is read.

    Raises:
        ValueError: Names the option, the value and the remedy.
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
        raise ValueError("nothing would be dropped: give pass_rates, blind_pass_rates, against, or leave duplicates on")
