"""Measures how fast rows with pictures become prompts, and how much memory large photos take.

    python -m bench.reading
    python -m bench.reading --only photos

`photos` reads one batch of 12-megapixel JPEGs in a fresh process, as `train()` does with a limit of one megapixel, and prints the
growth of the process and the size of a pickled prompt. `parquet` and `paths` read 640 × 480 JPEGs, embedded in a parquet file or as
paths in a JSON file, with the threads of a prompt stream, and print rows per second. Each is the best of a few passes.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rollout.config import RolloutConfig
from rollout.data.datasets import read_rows
from rollout.data.prompts import Prompts, column_mapping, prompts_from
from rollout.data.stream import READERS, PromptStream
from rollout.rendering import limit_pixels

Case = Literal["photos", "parquet", "paths"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measurement."""

    only: Case | None = None
    """Measures one case in this process. Default: each in a process of its own."""
    rows: int = 5000
    """Rows of 640 × 480 pixels."""
    photos: int = 16
    """Photos in a batch."""
    passes: int = 3
    """Passes over the rows."""
    max_pixels: int = 1 << 20
    """Most pixels of a picture for the policy."""


def main(options: Options) -> None:
    """Measures, and prints one JSON object for each case."""
    if options.only is None:
        for case in ("photos", "parquet", "paths"):
            subprocess.run([sys.executable, "-m", "bench.reading", *sys.argv[1:], "--only", case], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure = {"photos": measure_photos, "parquet": measure_parquet, "paths": measure_paths}[options.only]
        print(json.dumps({"case": options.only, **measure(options, Path(folder))}), flush=True)


def measure_photos(options: Options, folder: Path) -> dict[str, float]:
    """Returns the growth of the process over one batch of large photos, of which the next batch is opened ahead."""
    command = f"from bench.reading import *; make_photos(Path({str(folder)!r}), {options.photos})"
    subprocess.run([sys.executable, "-c", command], check=True)  # encoding takes memory of its own
    rows = [{"question": "?", "image": str(path), "answer": "1"} for path in sorted(folder.glob("*.jpg"))]
    stream = PromptStream(as_seen(prompts_from(rows, column_mapping()), options), batch_size=options.photos, seed=0)
    before, start = resident_mib(), time.perf_counter()
    batch = stream.next_batch()
    seconds = time.perf_counter() - start
    time.sleep(seconds + 1)  # the next batch
    return {
        "before_mib": before,
        "growth_mib": resident_mib() - before,
        "peak_growth_mib": resident_mib("VmHWM") - before,
        "pickled_mib": round(len(pickle.dumps(batch[0])) / 2**20, 1),
        "photos_per_second": round(options.photos / seconds, 1),
    }


def measure_parquet(options: Options, folder: Path) -> dict[str, float]:
    """Returns the rows per second of embedded pictures."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    files = [path.read_bytes() for path in make_pictures(folder, 100)]
    table = {
        "question": ["?"] * options.rows,
        "image": [{"bytes": files[row % len(files)], "path": None} for row in range(options.rows)],
        "answer": ["1"] * options.rows,
    }
    features = Features({"question": Value("string"), "image": ImageFeature(), "answer": Value("string")})
    Dataset.from_dict(table, features=features).to_parquet(folder / "train.parquet")
    return rows_per_second(options, folder / "train.parquet")


def measure_paths(options: Options, folder: Path) -> dict[str, float]:
    """Returns the rows per second of pictures given as paths."""
    names = [path.name for path in make_pictures(folder, 100)]
    rows = ({"question": "?", "image": names[row % len(names)], "answer": "1"} for row in range(options.rows))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows_per_second(options, folder / "train.jsonl")


def rows_per_second(options: Options, file: Path) -> dict[str, float]:
    """Opens all prompts of a file, in the order of a shuffled epoch."""
    prompts = as_seen(prompts_from(read_rows(file), column_mapping()), options)
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    seconds = []
    for _ in range(options.passes):
        start = time.perf_counter()
        with ThreadPoolExecutor(READERS) as readers:
            for prompt in readers.map(prompts.__getitem__, order):
                assert len(prompt.images) == 1
        seconds.append(time.perf_counter() - start)
    return {"rows_per_second": round(options.rows / min(seconds))}


def as_seen(prompts: Prompts, options: Options) -> Any:
    """Returns the prompts as `train()` reads them without an environment."""
    try:
        from rollout.data.mixture import shrunk
        from rollout.rendering import size_seen
    except ImportError:  # an earlier commit, to compare with
        return prompts
    processor = limit_pixels(small_processor(), RolloutConfig(max_image_pixels=options.max_pixels))
    return shrunk(prompts, partial(size_seen, processor))


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """Writes JPEGs with the detail of photos."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_photos(folder: Path, count: int) -> None:
    """Writes JPEGs of 12 megapixels."""
    make_pictures(folder, count, (4000, 3000))


def resident_mib(field: str = "VmRSS") -> int:
    """Returns the memory of this process: at present, or (VmHWM) at its greatest."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
