"""Token ids and pictures → what the model's forward takes.

Shapes: L tokens, N images in the order of their placeholders, U distinct images, C patch values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from policies.packing import real_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionInputs:
    """The images of a batch. Siblings of a group show the same picture: the vision tower sees it once.

    Attributes:
        pixels: [patches of all U images, C] float32, as the processor makes them.
        grid_U3: [U, 3] int64, each image's patch grid (time, height, width).
        order_N: [N] int64, which distinct image each placeholder shows; empty for an image that nobody sees.
    """

    pixels: Tensor
    grid_U3: Tensor
    order_N: Tensor

    def to(self, device: torch.device) -> VisionInputs:
        """The same on `device`."""
        return VisionInputs(
            pixels=self.pixels.to(device), grid_U3=self.grid_U3.to(device), order_N=self.order_N.to(device)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedImages:
    """The images of one prompt: `pixels` [patches, C] and `grid_N3` [N, 3], as in `VisionInputs`."""

    pixels: Tensor
    grid_N3: Tensor


def encode_images(processor: ProcessorMixin, images: Sequence[Any]) -> EncodedImages | None:
    """Runs the image processor on one prompt's PIL images; None without images."""
    if not images:
        return None
    encoded = processor.image_processor(images=list(images), return_tensors="pt")
    return EncodedImages(pixels=encoded["pixel_values"], grid_N3=encoded["image_grid_thw"])


def join_images(per_sequence: Sequence[EncodedImages | None]) -> VisionInputs | None:
    """Joins the images of a batch's sequences, keeping each distinct object once.

    Args:
        per_sequence: [B] what each sequence shows; siblings pass the very same object.

    Returns:
        The joined images, or None if no sequence has any.
    """
    distinct: dict[int, tuple[EncodedImages, int]] = {}
    order: list[int] = []
    first_free = 0
    for encoded in per_sequence:
        if encoded is None:
            continue
        if id(encoded) not in distinct:
            distinct[id(encoded)] = (encoded, first_free)
            first_free += len(encoded.grid_N3)
        first = distinct[id(encoded)][1]
        order.extend(range(first, first + len(encoded.grid_N3)))
    if not distinct:
        return None
    parts = [encoded for encoded, _ in distinct.values()]
    return VisionInputs(
        pixels=torch.cat([part.pixels for part in parts]),
        grid_U3=torch.cat([part.grid_N3 for part in parts]),
        order_N=torch.tensor(order),
    )


def unseen_image(vision_config: Any) -> VisionInputs:
    """The smallest image, shown nowhere: through it the vision tower runs where there is nothing to see.

    Ranks that share a policy must all run the same layers. Its features, and so its gradients, count zero times.
    """
    merge, patch = vision_config.spatial_merge_size, vision_config.patch_size
    values = vision_config.in_channels * vision_config.temporal_patch_size * patch**2
    return VisionInputs(
        pixels=torch.zeros(merge**2, values),
        grid_U3=torch.tensor([[1, merge, merge]]),
        order_N=torch.zeros(0, dtype=torch.long),
    )


def expand_image_tokens(
    token_ids: Sequence[int], grid_N3: np.ndarray, image_token_id: int, merge_size: int
) -> np.ndarray:
    """Repeats each image's single placeholder as often as the image has merged tokens; what an engine does by itself.

    Args:
        token_ids: One placeholder per image.
        grid_N3: [N, 3] int, patch grids of the images in order, before merging.
        image_token_id: The placeholder's id.
        merge_size: Patches per side that merge into one token.

    Returns:
        [P] int32.

    Raises:
        ValueError: If placeholders and images do not match in number.
    """
    tokens = np.asarray(token_ids, np.int32)
    counts = np.ones(len(tokens), np.int64)
    is_image = tokens == image_token_id
    if is_image.sum() != len(grid_N3):
        raise ValueError(f"the prompt has {is_image.sum()} image placeholders and {len(grid_N3)} images")
    counts[is_image] = np.asarray(grid_N3).reshape(-1, 3).prod(axis=1) // merge_size**2
    return np.repeat(tokens, counts)


def mrope_positions(token_ids: np.ndarray, grid_N3: np.ndarray, image_token_id: int, merge_size: int) -> np.ndarray:
    """Interleaved-MRoPE positions of one sequence (Qwen3-VL, arXiv 2511.21631).

    Text advances all three axes by one. An image of a merged grid (t, h, w) fills positions (t, h, w) counted from where it
    starts, and the text behind it goes on at start + max(h, w).

    Args:
        token_ids: [L] int, image placeholders expanded.
        grid_N3: [N, 3] int, patch grids of the images in order, before merging.
        image_token_id: The placeholder's id.
        merge_size: Patches per side that merge into one token.

    Returns:
        [3, L] int64 positions of time, height, width.

    Raises:
        ValueError: If placeholders and images do not match in number.
    """
    positions_3L = np.empty((3, len(token_ids)), np.int64)
    merged_N3 = np.asarray(grid_N3) // np.array([1, merge_size, merge_size])
    num_placeholders = int((token_ids == image_token_id).sum())
    num_features = int(merged_N3.prod(axis=-1).sum()) if len(merged_N3) else 0
    if num_placeholders != num_features:
        raise ValueError(f"the prompt has {num_placeholders} image tokens, its images make {num_features}")
    start, position = 0, 0
    for t, h, w in merged_N3:
        first = start + int(np.argmax(token_ids[start:] == image_token_id))
        positions_3L[:, start:first] = position + np.arange(first - start)
        position += first - start
        positions_3L[:, first : first + t * h * w] = position + np.indices((t, h, w)).reshape(3, -1)
        start, position = first + t * h * w, position + max(h, w)
    positions_3L[:, start:] = position + np.arange(len(token_ids) - start)
    return positions_3L


def hidden_states(
    model: PreTrainedModel,
    tokens_BL: Tensor,
    positions_3BL: Tensor,
    vision: VisionInputs | None,
    lengths_B: Tensor | None = None,
) -> Tensor:
    """[B, L, H] the last hidden states, before the vocabulary.

    Sequences are padded on the right and attention is causal, so no real token sees a padded one and no mask is needed.

    Args:
        model: A Qwen3-VL, dense or MoE.
        tokens_BL: int64 token ids.
        positions_3BL: int64 positions of interleaved MRoPE.
        vision: The images; None for text only.
        lengths_B: Tokens of each sequence, to leave out the padding, whose hidden states are 0 then; for a model that
            `use_packed_attention` has prepared. Default: the model sees the padding.
    """
    features = (
        None if vision is None else model.model.get_image_features(vision.pixels, vision.grid_U3, return_dict=True)
    )
    order = [] if vision is None else vision.order_N.tolist()
    outputs = {"image": _placed(features, order)} if order else None
    if lengths_B is None:
        hidden_BLH = model.model(
            input_ids=tokens_BL, position_ids=positions_3BL, mm_encoder_outputs=outputs, use_cache=False
        ).last_hidden_state
    else:
        real_BL = real_tokens(lengths_B, tokens_BL.shape[1])
        hidden_1SH = model.model(
            input_ids=tokens_BL[real_BL][None],
            position_ids=positions_3BL[:, real_BL][:, None],
            mm_encoder_outputs=outputs,
            use_cache=False,
            sequence_lengths=lengths_B.tolist(),
        ).last_hidden_state
        hidden_BLH = hidden_1SH.new_zeros(*real_BL.shape, hidden_1SH.shape[2])
        hidden_BLH[real_BL] = hidden_1SH[0]
    if features is not None and not order:  # the tower's part of the backward pass, too, must run
        for unseen in (*features.pooler_output, *(image for level in features.deepstack_features for image in level)):
            hidden_BLH = hidden_BLH + 0 * unseen.sum()
    return hidden_BLH


def _placed(features: Any, order: Sequence[int]) -> Any:
    """The tower's output for every placeholder, from that of every distinct image; gradients add up."""
    features.pooler_output = [features.pooler_output[i] for i in order]
    features.deepstack_features = [[level[i] for i in order] for level in features.deepstack_features]
    return features
