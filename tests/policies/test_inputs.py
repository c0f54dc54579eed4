"""Our positions and shared media against what transformers makes of the same prompts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from policies.inputs import (
    EncodedMedia,
    VisionInputs,
    encode_images,
    encode_video,
    hidden_states,
    join_media,
    mrope_positions,
    vision_tokens,
)
from policies.loading import load_policy
from policies.packing import padded_row
from policies.small.qwen3_vl import TOKEN_IDS, small_config, small_processor

IMAGE, VIDEO = TOKEN_IDS["<|image_pad|>"], TOKEN_IDS["<|video_pad|>"]
PROCESSOR = small_processor()
VISION = vision_tokens(small_config("dense"))


@cache
def model_without_weights() -> PreTrainedModel:
    """Positions need the config only."""
    from transformers import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(small_config("dense"))


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, dense_policy: Path, moe_policy: Path) -> PreTrainedModel:
    folder = {"dense": dense_policy, "moe": moe_policy}[request.param]
    return load_policy(folder, dtype=torch.float32, device="cpu")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(height, width, 3, seed=seed))


def encoded_picture(width: int, height: int, seed: int = 0) -> EncodedMedia:
    [encoded] = encode_images(PROCESSOR, [picture(width, height, seed)])
    return encoded


def encoded_video(num_frames: int, width: int, height: int, seed: int = 0) -> EncodedMedia:
    return encode_video(PROCESSOR, noise(num_frames, height, width, 3, seed=seed))


def tokens_of_transformers(kinds: str, images: list[Image.Image], videos: list[np.ndarray]) -> dict[str, Tensor]:
    """What transformers' processor makes of a question with images ("i") and videos ("v") in this order."""
    pads = {"i": "<|image_pad|>", "v": "<|video_pad|>"}
    media = "".join(f"{n}<|vision_start|>{pads[kind]}<|vision_end|>" for n, kind in enumerate(kinds))
    metadata = [
        {"fps": 10.0, "total_num_frames": 5 * len(v), "frames_indices": list(range(0, 5 * len(v), 5))} for v in videos
    ]
    return PROCESSOR(
        text=[f"<|im_start|>u{media} sum?<|im_end|><|im_start|>a"],
        images=images or None,
        videos=[video.transpose(0, 3, 1, 2) for video in videos] or None,
        video_metadata=metadata or None,
        do_sample_frames=False,
        return_tensors="pt",
    )


SIDE = st.integers(1, 6)
MEDIA = st.lists(st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, st.integers(2, 7))), max_size=4)
"""Sizes in tokens of images, and of videos with their number of frames."""


@settings(max_examples=25, deadline=None)
@given(MEDIA)
def test_positions_are_those_of_transformers_for_any_mixture_of_images_and_videos(sizes: list[tuple[int, ...]]):
    images = [picture(32 * size[0], 32 * size[1]) for size in sizes if len(size) == 2]
    videos = [noise(size[2], 32 * size[1], 32 * size[0], 3) for size in sizes if len(size) == 3]
    encoded = tokens_of_transformers("".join("vi"[len(size) == 2] for size in sizes), images, videos)
    types = encoded.get("mm_token_type_ids", torch.zeros_like(encoded["input_ids"]))
    theirs_31L, _ = model_without_weights().model.get_rope_index(
        encoded["input_ids"], types, encoded.get("image_grid_thw"), encoded.get("video_grid_thw")
    )
    shown = encode_images(PROCESSOR, images)
    shown += [encode_video(PROCESSOR, video) for video in videos]
    assert mrope_positions(encoded["input_ids"][0].numpy(), shown, VISION).tolist() == theirs_31L[:, 0].tolist()


@settings(max_examples=15, deadline=None)
@given(MEDIA)
def test_pixels_and_grids_one_by_one_are_those_that_transformers_makes_of_all(sizes: list[tuple[int, ...]]):
    images = [picture(32 * size[0], 32 * size[1], seed) for seed, size in enumerate(sizes) if len(size) == 2]
    videos = [
        noise(size[2], 32 * size[1], 32 * size[0], 3, seed=seed) for seed, size in enumerate(sizes) if len(size) == 3
    ]
    theirs = tokens_of_transformers("".join("vi"[len(size) == 2] for size in sizes), images, videos)
    for ours, pixels, grids in (
        (encode_images(PROCESSOR, images), "pixel_values", "image_grid_thw"),
        ([encode_video(PROCESSOR, video) for video in videos], "pixel_values_videos", "video_grid_thw"),
    ):
        assert [list(media.grid) for media in ours] == (theirs[grids].tolist() if ours else [])
        assert not ours or torch.equal(torch.cat([media.pixels for media in ours]), theirs[pixels])


def test_text_advances_all_axes_by_one():
    assert mrope_positions(np.array([1, 2, 3]), [], VISION).tolist() == [[0, 1, 2]] * 3


def unseen(*grid: int, is_video: bool = False) -> EncodedMedia:
    return EncodedMedia(pixels=torch.zeros(0, 3), grid=grid, is_video=is_video)


def test_positions_around_an_image_are_worked_by_hand():
    # A picture of 4·6 patches is 2·3 tokens. It starts at 2; the text behind goes on at 2 + max(2, 3) = 5.
    token_ids = np.array([1, 2, *[IMAGE] * 6, 3, 4])
    assert mrope_positions(token_ids, [unseen(1, 4, 6)], VISION).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_positions_of_a_video_go_on_from_frame_to_frame_through_the_text_between():
    # Two steps in time of 2·4 patches, 1·2 tokens each: at 1 and, after 1 + 2 and a token of text, at 4.
    token_ids = np.array([1, VIDEO, VIDEO, 2, VIDEO, VIDEO, 3])
    assert mrope_positions(token_ids, [unseen(2, 2, 4, is_video=True)], VISION).tolist() == [
        [0, 1, 1, 3, 4, 4, 6],
        [0, 1, 1, 3, 4, 4, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


def test_placeholders_and_media_must_match_in_number():
    with pytest.raises(ValueError, match="the sequence has 3 image tokens, but its images have 4 features"):
        mrope_positions(np.array([IMAGE] * 3), [unseen(1, 4, 4)], VISION)
    with pytest.raises(ValueError, match="the sequence has 1 image tokens, but its images have 0 features"):
        mrope_positions(np.array([1, IMAGE]), [], VISION)
    with pytest.raises(ValueError, match="the sequence has 1 video tokens, but its videos have 2 features"):
        mrope_positions(np.array([1, VIDEO]), [unseen(2, 2, 2, is_video=True)], VISION)


def test_frames_three_pixels_high_are_not_taken_for_channels():
    time, height, width = encoded_video(4, 64, 3).grid
    assert time == 2 and width > 2 * height


def test_frames_that_nobody_may_write_to_are_read_without_a_warning(recwarn: pytest.WarningsRecorder):
    frames = noise(4, 32, 32, 3)
    frames.setflags(write=False)
    encode_video(PROCESSOR, frames)
    assert not recwarn.list


def test_sequences_without_media_have_nothing_to_join():
    assert join_media([[], []]) is None


def test_equal_pictures_that_are_different_objects_stay_apart_and_the_same_object_comes_once():
    first, second = (encoded_picture(64, 32) for _ in range(2))
    joined = join_media([[first], [], [second], [first]])
    assert joined.image_order_N.tolist() == [0, 1, 0]
    assert joined.grid_U3.tolist() == [[1, 2, 4], [1, 2, 4]]
    assert torch.equal(joined.pixels, torch.cat([first.pixels, second.pixels]))


def test_several_images_of_one_prompt_keep_their_order_whatever_stands_between():
    a, b, c = (unseen(1, 2, 2) for _ in range(3))
    clip = unseen(2, 2, 2, is_video=True)
    joined = join_media([[c], [a, clip, b], [c], [b, a]])
    assert joined.image_order_N.tolist() == [0, 1, 3, 0, 3, 1]
    assert joined.video_order_M.tolist() == [2]
    assert joined.is_seen


def sibling_batch() -> tuple[list[np.ndarray], list[list[EncodedMedia]]]:
    """Two siblings of a picture and a video, one of two other pictures, one of text only; of four different lengths."""
    shared = [encoded_picture(96, 64, seed=1), encoded_video(3, 64, 32, seed=4)]
    two = [encoded_picture(32, 32, seed=2), encoded_picture(64, 96, seed=3)]
    rows: list[tuple[str, list[EncodedMedia]]] = [("vi", shared), ("ii", two), ("vi", shared), ("", [])]
    sequences = []
    for (kinds, shown), answer in zip(rows, (b"7", b"1+2=3", b"99", b""), strict=True):
        images = [picture(media.grid[2] * 16, media.grid[1] * 16) for media in shown if not media.is_video]
        videos = [noise(3, media.grid[1] * 16, media.grid[2] * 16, 3) for media in shown if media.is_video]
        prompt = tokens_of_transformers(kinds, images, videos)["input_ids"][0].numpy()
        sequences.append(np.concatenate([prompt, np.array([*answer], prompt.dtype)]))
    return sequences, [shown for _, shown in rows]


def padded(sequences: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Tokens [B, L] and which of them are real."""
    length = max(map(len, sequences))
    tokens = torch.tensor([[*s.tolist(), *[0] * (length - len(s))] for s in sequences])
    return tokens, torch.arange(length) < torch.tensor([[len(s)] for s in sequences])


def gradients(model: PreTrainedModel, hidden_NH: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs every hidden value differently."""
    model.zero_grad()
    (hidden_NH * torch.linspace(-1, 1, hidden_NH.numel()).view_as(hidden_NH)).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def positions(sequences: list[np.ndarray], shown: list[list[EncodedMedia]], length: int) -> Tensor:
    """[3, B, L], 0 where there is padding."""
    positions_3BL = torch.zeros(3, len(sequences), length, dtype=torch.long)
    for row, (sequence, its) in enumerate(zip(sequences, shown, strict=True)):
        positions_3BL[:, row, : len(sequence)] = torch.from_numpy(mrope_positions(sequence, its, VISION))
    return positions_3BL


def hidden_BLH(
    model: PreTrainedModel, tokens_BL: torch.Tensor, positions_3BL: torch.Tensor, vision: VisionInputs | None
) -> torch.Tensor:
    """The hidden states of a padded batch."""
    shape = tokens_BL.shape
    return hidden_states(model, tokens_BL, positions_3BL, vision, padded_row(*shape)).view(*shape, -1)


@pytest.mark.parametrize("model", ["dense", "moe"], indirect=True)
def test_siblings_that_share_their_media_equal_the_models_own_forward_with_all_repeated(model: PreTrainedModel):
    sequences, shown = sibling_batch()
    tokens_BL, real_BL = padded(sequences)
    vision = join_media(shown)
    assert (len(vision.grid_U3), len(vision.image_order_N), len(vision.video_order_M)) == (4, 4, 2)
    ours = hidden_BLH(model, tokens_BL, positions(sequences, shown, tokens_BL.shape[1]), vision)[real_BL]

    all_media = [media for its in shown for media in its]
    images, videos = ([media for media in all_media if media.is_video == is_video] for is_video in (False, True))
    theirs = model.model(
        input_ids=tokens_BL,
        attention_mask=real_BL.long(),
        pixel_values=torch.cat([media.pixels for media in images]),
        image_grid_thw=torch.tensor([media.grid for media in images]),
        pixel_values_videos=torch.cat([media.pixels for media in videos]),
        video_grid_thw=torch.tensor([media.grid for media in videos]),
        mm_token_type_ids=(tokens_BL == IMAGE).int() + 2 * (tokens_BL == VIDEO).int(),
    ).last_hidden_state[real_BL]

    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    expected = gradients(model, theirs)
    assert any(name.startswith("model.visual.deepstack_merger_list") for name in expected)
    assert_close(gradients(model, ours), expected)


@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_text_only_equals_the_models_own_forward_and_leaves_the_vision_tower_alone(model: PreTrainedModel):
    tokens_BL = torch.tensor([list(b"3+5+9=17"), list(b"1+1+1=3.")])
    positions_3BL = torch.arange(8).expand(3, 2, 8)
    ours, theirs = (
        hidden_BLH(model, tokens_BL, positions_3BL, None),
        model.model(input_ids=tokens_BL).last_hidden_state,
    )
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not [name for name in gradients(model, ours) if name.startswith("model.visual")]


@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_a_placeholder_that_shows_the_wrong_image_would_be_noticed(model: PreTrainedModel):
    sequences, _ = sibling_batch()
    sequence = sequences[1]
    images = [encoded_picture(32, 32, seed=2), encoded_picture(64, 96, seed=3), encoded_picture(64, 96, seed=4)]
    right = join_media([[images[0], images[1]], [images[0], images[2]]])
    swapped = VisionInputs(
        pixels=right.pixels,
        grid_U3=right.grid_U3,
        image_order_N=right.image_order_N[[2, 3, 0, 1]],
        video_order_M=right.video_order_M,
    )
    tokens_BL, _ = padded([sequence] * 2)
    positions_3BL = positions([sequence] * 2, [images[:2]] * 2, len(sequence))
    with torch.no_grad():
        a, b = (hidden_BLH(model, tokens_BL, positions_3BL, vision) for vision in (right, swapped))
    assert torch.allclose(a, b.flip(0), rtol=0, atol=1e-5)
    assert (a - b).abs().max() > 1e-2
