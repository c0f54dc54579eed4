"""Loading of a policy and its processor from a folder or hub name, with a clear error if it cannot work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel, Qwen3VLProcessor
from transformers.utils import logging as transformers_logging

SUPPORTED_FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
REMEDY = "pass a folder with config.json or a hub name"


def load_policy(path_or_name: Path | str, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """Loads a Qwen3-VL, dense or MoE, ready to train: every parameter takes gradients, attention is torch's SDPA.

    Args:
        path_or_name: A folder in the published layout, or a hub name.
        dtype: Precision of the parameters.
        device: Device of the parameters.

    Raises:
        ValueError: There is no such model, it is of another family, its weights do not fit the config, or it has square experts.
    """
    name = supported_model(path_or_name)
    with quiet():
        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, attn_implementation="sdpa", ignore_mismatched_sizes=True, output_loading_info=True
            )
        except Exception as error:  # files that somebody else has written make transformers raise anything
            raise ValueError(f"the weights of model '{name}' cannot be read: {_first_line(error)}") from error
    # from_pretrained would silently fill missing weights with random numbers.
    if missing := sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"]):
        raise ValueError(
            f"model '{name}' lacks {len(missing)} weights that its config.json requires, the first is {missing[0]}; "
            "pass a complete checkpoint in the published layout"
        )
    refuse_square_experts(name, model.config.text_config)
    return model.to(device)


def supported_model(path_or_name: Path | str) -> str:
    """Returns the folder or hub name of a model of a supported family.

    Raises:
        ValueError: There is no such model, or it is of another family.
    """
    name = _existing(path_or_name)
    family = _family(name)
    if family not in SUPPORTED_FAMILIES:
        raise ValueError(f"model '{name}' is of family '{family}'; supported families: {', '.join(SUPPORTED_FAMILIES)}")
    return name


def model_folder(name: str) -> Path:
    """Returns the folder of a model's weights; a hub model is first downloaded to the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))


def load_processor(path_or_name: Path | str) -> Qwen3VLProcessor:
    """Loads tokenizer, chat template, image and video processor of a model.

    Args:
        path_or_name: A folder in the published layout, or a hub name.

    Raises:
        ValueError: There is no such model, or its processor's files are missing.
    """
    name = _existing(path_or_name)
    try:
        processor = AutoProcessor.from_pretrained(name)
    except Exception as error:
        raise ValueError(
            f"model '{name}' has no usable processor ({_first_line(error)}); "
            "put the tokenizer and processor files of the published model next to config.json"
        ) from error
    if not isinstance(processor, Qwen3VLProcessor):
        raise ValueError(f"the processor of model '{name}' is a {type(processor).__name__}, not a Qwen3VLProcessor")
    return processor


def vision_token_ids(source: PreTrainedConfig | Qwen3VLProcessor) -> list[int]:
    """Returns ids that a policy must never sample: an image placeholder without an image breaks the next forward pass.

    The engine bans them and the learner masks them, so that both normalise over the same tokens.

    Args:
        source: The config or the processor of a model; both have the ids.

    Returns:
        Ids of vision start, vision end, image pad and video pad, sorted.
    """
    return sorted(
        (source.vision_start_token_id, source.vision_end_token_id, source.image_token_id, source.video_token_id)
    )


def _existing(path_or_name: Path | str) -> str:
    """Returns a folder that has a config.json, or a possible hub name."""
    folder = Path(path_or_name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.exists():
        raise ValueError(f"model folder '{folder}' has no config.json; {REMEDY}")
    if not HUB_NAME.fullmatch(str(path_or_name)):
        raise ValueError(f"model folder '{folder}' does not exist; {REMEDY}")
    return str(path_or_name)


def _family(name: str) -> str:
    """Returns `model_type` from config.json, even for a family that transformers does not support."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except Exception as error:
        raise ValueError(
            f"no config.json of model '{name}', here or on the hub ({_first_line(error)}); {REMEDY}"
        ) from error
    return config.get("model_type", "unknown")


def refuse_square_experts(name: str, text: PreTrainedConfig) -> None:
    """Refuses square experts. transformers decides by their shape whether to transpose them, so it loads square ones wrongly."""
    hidden, intermediate = text.hidden_size, getattr(text, "moe_intermediate_size", None)
    if intermediate and hidden in (intermediate, 2 * intermediate):
        raise ValueError(
            f"model '{name}' has square expert matrices (hidden_size {hidden}, moe_intermediate_size {intermediate}), "
            "which transformers loads transposed; choose another moe_intermediate_size"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bar and loading report inside the block; downloads keep their bar."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    download_bars = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # also disables the hub's bars
    if download_bars:
        enable_progress_bars()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
