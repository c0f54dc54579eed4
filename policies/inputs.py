"""Inputs of the model's forward pass from token ids, images and videos.

Shapes: L tokens, S tokens of a row, N images and M videos in the order of their placeholders, U distinct media of both kinds, C
patch values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from policies.packing import Row

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTokens:
    """Placeholder tokens of images and videos."""

    image_id: int
    """Id of the image placeholder."""
    video_id: int
    """Id of the video placeholder."""
    merge_size: int
    """Patches per side that merge into one token."""


def vision_tokens(config: PreTrainedConfig) -> VisionTokens:
    """Returns the placeholder tokens of a model's config."""
    return VisionTokens(
        image_id=config.image_token_id,
        video_id=config.video_token_id,
        merge_size=config.vision_config.spatial_merge_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedMedia:
    """One image or video, as returned by the processor."""

    pixels: Tensor
    """[patches, C] float32."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""
    is_video: bool = False
    """True if it belongs to video placeholders."""


def num_placeholders(media: EncodedMedia, vision: VisionTokens) -> int:
    """Returns the tokens that an image or a video has in a sequence."""
    time, height, width = media.grid
    return time * height * width // vision.merge_size**2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionInputs:
    """The images and videos of a batch. Completions of a group share them, so the vision tower encodes each once."""

    pixels: Tensor
    """[patches of all U, C] float32, as returned by the processor."""
    grid_U3: Tensor
    """[U, 3] int64, patch grids (time, height, width)."""
    image_order_N: Tensor
    """[N] int64, index into the U media of each image placeholder."""
    video_order_M: Tensor
    """[M] int64, index into the U media of each video placeholder."""

    @property
    def is_seen(self) -> bool:
        """True if any placeholder refers to any of the media."""
        return len(self.image_order_N) + len(self.video_order_M) > 0

    def to(self, device: torch.device) -> VisionInputs:
        """Returns a copy on `device`; the orders stay on the CPU, where they are read."""
        return VisionInputs(
            pixels=self.pixels.to(device),
            grid_U3=self.grid_U3.to(device),
            image_order_N=self.image_order_N,
            video_order_M=self.video_order_M,
        )


def encode_images(processor: ProcessorMixin, images: Sequence[Any]) -> list[EncodedMedia]:
    """Runs the image processor on PIL images, all in one call: most of a small picture's time is the call's own."""
    if not images:
        return []
    encoded = processor.image_processor(images=list(images), return_tensors="pt")
    grids = [(time, height, width) for time, height, width in encoded["image_grid_thw"].tolist()]
    pixels = encoded["pixel_values"].split([time * height * width for time, height, width in grids])
    return [EncodedMedia(pixels=its, grid=grid) for its, grid in zip(pixels, grids, strict=True)]


def encode_video(processor: ProcessorMixin, frames: np.ndarray) -> EncodedMedia:
    """Runs the video processor on frames [F, H, W, 3] uint8, without sampling frames."""
    # Copied, since frames in shared memory are read-only. Channels first, since a frame 3 pixels high would be taken for that.
    channels_first = torch.tensor(frames).permute(0, 3, 1, 2)
    encoded = processor.video_processor(videos=[channels_first], do_sample_frames=False, return_tensors="pt")
    time, height, width = encoded["video_grid_thw"][0].tolist()
    return EncodedMedia(pixels=encoded["pixel_values_videos"], grid=(time, height, width), is_video=True)


def join_media(media_B: Sequence[Sequence[EncodedMedia]]) -> VisionInputs | None:
    """Joins the media of a batch's sequences, keeping each distinct object once.

    Args:
        media_B: [B] the media of each sequence, images and videos each in the order of their placeholders. Completions of a group
            pass the same objects.

    Returns:
        The joined media, or None if no sequence has any.
    """
    distinct = {id(media): media for sequence in media_B for media in sequence}
    if not distinct:
        return None
    number = {key: index for index, key in enumerate(distinct)}
    orders = [
        [number[id(media)] for sequence in media_B for media in sequence if media.is_video == is_video]
        for is_video in (False, True)
    ]
    return VisionInputs(
        pixels=torch.cat([media.pixels for media in distinct.values()]),
        grid_U3=torch.tensor([media.grid for media in distinct.values()]),
        image_order_N=torch.tensor(orders[0], dtype=torch.long),
        video_order_M=torch.tensor(orders[1], dtype=torch.long),
    )


def dummy_image(vision_config: Any) -> VisionInputs:
    """Returns the smallest image without a placeholder, so that the vision tower runs on a rank without media.

    All ranks of a sharded policy must run the same layers. The image's features, and so its gradients, are multiplied by zero.
    """
    merge, patch = vision_config.spatial_merge_size, vision_config.patch_size
    values = vision_config.in_channels * vision_config.temporal_patch_size * patch**2
    return VisionInputs(
        pixels=torch.zeros(merge**2, values),
        grid_U3=torch.tensor([[1, merge, merge]]),
        image_order_N=torch.zeros(0, dtype=torch.long),
        video_order_M=torch.zeros(0, dtype=torch.long),
    )


def mrope_positions(token_ids: np.ndarray, media: Sequence[EncodedMedia], vision: VisionTokens) -> np.ndarray:
    """Returns the interleaved-MRoPE positions of one sequence (Qwen3-VL, arXiv 2511.21631).

    Text advances all three axes by one. An image with a merged grid (1, h, w) takes the positions of that grid, relative to its
    start; the following text continues at start + max(h, w). A video counts as one image per time step: only the text between them
    gives their order.

    Args:
        token_ids: [L] int, placeholders expanded.
        media: Images and videos, each in the order of their placeholders.
        vision: The placeholders.

    Returns:
        [3, L] int64 positions of time, height, width.

    Raises:
        ValueError: Placeholders and media do not match in number.
    """
    positions_3L = np.empty((3, len(token_ids)), np.int64)
    pictures = {
        token_id: _pictures(token_ids, [each.grid for each in media if each.is_video == is_video], vision, is_video)
        for token_id, is_video in ((vision.image_id, False), (vision.video_id, True))
    }
    placeholders = np.flatnonzero((token_ids == vision.image_id) | (token_ids == vision.video_id))
    waiting = {token_id: iter(sizes) for token_id, sizes in pictures.items()}
    start, position, seen = 0, 0, 0
    for _ in range(sum(map(len, pictures.values()))):
        first = int(placeholders[seen])
        height, width = next(waiting[int(token_ids[first])])
        positions_3L[:, start:first] = np.arange(position, position + first - start)
        position += first - start
        start, seen = first + height * width, seen + height * width
        positions_3L[0, first:start] = position
        positions_3L[1, first:start] = position + np.repeat(np.arange(height), width)
        positions_3L[2, first:start] = position + np.tile(np.arange(width), height)
        position += max(height, width)
    positions_3L[:, start:] = np.arange(position, position + len(token_ids) - start)
    return positions_3L


def _pictures(
    token_ids: np.ndarray, grids: Sequence[tuple[int, int, int]], vision: VisionTokens, is_video: bool
) -> list[tuple[int, int]]:
    """Returns height and width, in tokens, of every image or of every time step of every video."""
    sizes = [(h // vision.merge_size, w // vision.merge_size) for t, h, w in grids for _ in range(t)]
    kind, token_id = ("video", vision.video_id) if is_video else ("image", vision.image_id)
    num_placeholders, num_features = int((token_ids == token_id).sum()), sum(h * w for h, w in sizes)
    if num_placeholders != num_features:
        raise ValueError(
            f"the sequence has {num_placeholders} {kind} tokens, but its {kind}s have {num_features} features"
        )
    return sizes


def hidden_states(
    model: PreTrainedModel, tokens_BL: Tensor, positions_3BL: Tensor, vision: VisionInputs | None, row: Row
) -> Tensor:
    """Returns [S, H], the hidden states of the last layer, in the row's order.

    Sequences are padded on the right and attention is causal. So no real token attends to padding, and no mask is needed.

    Args:
        model: A Qwen3-VL, dense or MoE; for a packed row prepared by `use_packed_attention`.
        tokens_BL: int64 token ids.
        positions_3BL: int64 positions of interleaved MRoPE.
        vision: The images and videos of the row's placeholders; None for text only.
        row: The tokens that pass through the layers.
    """
    features, outputs = None, {}
    if vision is not None:
        # Images and videos go through the same tower together, frames of a video one by one.
        features = model.model.get_image_features(vision.pixels, vision.grid_U3, return_dict=True)
        orders = {"image": vision.image_order_N.tolist(), "video": vision.video_order_M.tolist()}
        outputs = {kind: _placed(features, order) for kind, order in orders.items() if order}
    layout = {}
    if row.calls:
        tokens_BL, positions_3BL = (
            tokens_BL.flatten()[None, row.tokens_S],
            positions_3BL.flatten(1)[:, None, row.tokens_S],
        )
        layout = {"row": row}
    hidden_SH = model.model(
        input_ids=tokens_BL, position_ids=positions_3BL, mm_encoder_outputs=outputs, use_cache=False, **layout
    ).last_hidden_state.flatten(0, 1)
    if features is not None and not outputs:  # the tower's backward pass must run, too
        for unseen in (*features.pooler_output, *(image for level in features.deepstack_features for image in level)):
            hidden_SH = hidden_SH + 0 * unseen.sum()
    return hidden_SH


def _placed(features: Any, order: Sequence[int]) -> Any:
    """Returns the tower's output per placeholder, from its output per distinct image or video; gradients add up."""
    return type(features)(
        pooler_output=[features.pooler_output[i] for i in order],
        deepstack_features=[[level[i] for i in order] for level in features.deepstack_features],
    )
