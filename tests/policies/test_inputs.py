"""Our positions, placeholders and shared images against what transformers makes of the same prompts."""

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
    EncodedImages,
    VisionInputs,
    encode_images,
    expand_image_tokens,
    hidden_states,
    join_images,
    mrope_positions,
)
from policies.loading import load_policy
from policies.small import TOKEN_IDS, small_config, small_processor

IMAGE = TOKEN_IDS["<|image_pad|>"]
PROCESSOR = small_processor()


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


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def text_with(num_images: int) -> str:
    turns = "".join(f"{number}<|vision_start|><|image_pad|><|vision_end|>" for number in range(num_images))
    return f"<|im_start|>u{turns} sum?<|im_end|><|im_start|>a"


def positions_of_transformers(text: str, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray, Tensor | None]:
    """Token ids, positions and grids as transformers' processor and model make them."""
    encoded = PROCESSOR(text=[text], images=images or None, return_tensors="pt")
    grids = encoded.get("image_grid_thw")
    token_types = encoded.get("mm_token_type_ids", torch.zeros_like(encoded["input_ids"]))
    positions_31L, _ = model_without_weights().model.get_rope_index(encoded["input_ids"], token_types, grids)
    return encoded["input_ids"][0].numpy(), positions_31L[:, 0].numpy(), grids


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=4))
def test_placeholders_and_positions_are_those_of_transformers_for_any_number_of_images(sizes: list[tuple[int, int]]):
    images = [picture(32 * width, 32 * height) for width, height in sizes]
    text = text_with(len(images))
    theirs, their_positions, grids = positions_of_transformers(text, images)
    grid_N3 = np.zeros((0, 3), np.int64) if grids is None else grids.numpy()
    ours = expand_image_tokens(PROCESSOR.tokenizer.encode(text, add_special_tokens=False), grid_N3, IMAGE, 2)
    assert ours.tolist() == theirs.tolist()
    assert mrope_positions(ours, grid_N3, IMAGE, 2).tolist() == their_positions.tolist()


def test_text_advances_all_axes_by_one():
    assert mrope_positions(np.array([1, 2, 3]), np.zeros((0, 3), int), IMAGE, 2).tolist() == [[0, 1, 2]] * 3


def test_positions_around_an_image_are_worked_by_hand():
    # A picture of 4·6 patches is 2·3 tokens. It starts at 2; the text behind goes on at 2 + max(2, 3) = 5.
    token_ids = np.array([1, 2, *[IMAGE] * 6, 3, 4])
    assert mrope_positions(token_ids, np.array([[1, 4, 6]]), IMAGE, 2).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_one_placeholder_becomes_as_many_as_the_image_has_tokens():
    expanded = expand_image_tokens([1, IMAGE, 2, IMAGE], np.array([[1, 4, 6], [1, 2, 2]]), IMAGE, 2)
    assert expanded.tolist() == [1, *[IMAGE] * 6, 2, IMAGE]
    assert expanded.dtype == np.int32


def test_placeholders_and_images_must_match_in_number():
    grid_N3 = np.array([[1, 4, 4]])
    with pytest.raises(ValueError, match="the prompt has 2 image placeholders and 1 images"):
        expand_image_tokens([IMAGE, IMAGE], grid_N3, IMAGE, 2)
    with pytest.raises(ValueError, match="the prompt has 3 image tokens, its images make 4"):
        mrope_positions(np.array([IMAGE] * 3), grid_N3, IMAGE, 2)
    with pytest.raises(ValueError, match="the prompt has 1 image tokens, its images make 0"):
        mrope_positions(np.array([1, IMAGE]), np.zeros((0, 3), int), IMAGE, 2)


def test_a_prompt_without_images_has_nothing_to_encode():
    assert encode_images(PROCESSOR, ()) is None
    assert join_images([None, None]) is None


def test_equal_pictures_that_are_different_objects_stay_apart_and_the_same_object_comes_once():
    first, second = (encode_images(PROCESSOR, [picture(64, 32)]) for _ in range(2))
    joined = join_images([first, None, second, first])
    assert joined.order_N.tolist() == [0, 1, 0]
    assert joined.grid_U3.tolist() == [[1, 2, 4], [1, 2, 4]]
    assert torch.equal(joined.pixels, torch.cat([first.pixels, second.pixels]))


def test_several_images_of_one_prompt_keep_their_order():
    pair, single = EncodedImages(pixels=torch.zeros(8, 3), grid_N3=torch.tensor([[1, 2, 2]] * 2)), None
    single = EncodedImages(pixels=torch.ones(4, 3), grid_N3=torch.tensor([[1, 2, 2]]))
    assert join_images([single, pair, single, pair]).order_N.tolist() == [0, 1, 2, 0, 1, 2]


def sibling_batch() -> tuple[list[np.ndarray], list[EncodedImages | None]]:
    """Two siblings of one picture, one of two other pictures, one of text only; of four different lengths."""
    shared = encode_images(PROCESSOR, [picture(96, 64, seed=1)])
    two = encode_images(PROCESSOR, [picture(32, 32, seed=2), picture(64, 96, seed=3)])
    rows = [
        (text_with(1) + "7", shared),
        (text_with(2) + "1+2=3", two),
        (text_with(1) + "99", shared),
        (text_with(0), None),
    ]
    sequences = [
        expand_image_tokens(
            PROCESSOR.tokenizer.encode(text, add_special_tokens=False),
            np.zeros((0, 3), int) if images is None else images.grid_N3.numpy(),
            IMAGE,
            2,
        )
        for text, images in rows
    ]
    return sequences, [images for _, images in rows]


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


@pytest.mark.parametrize("model", ["dense", "moe"], indirect=True)
def test_siblings_that_share_an_image_equal_the_models_own_forward_with_the_image_repeated(model: PreTrainedModel):
    sequences, images = sibling_batch()
    tokens_BL, real_BL = padded(sequences)
    positions_3BL = torch.zeros(3, *tokens_BL.shape, dtype=torch.long)
    for row, (sequence, its) in enumerate(zip(sequences, images, strict=True)):
        grid_N3 = np.zeros((0, 3), int) if its is None else its.grid_N3.numpy()
        positions_3BL[:, row, : len(sequence)] = torch.from_numpy(mrope_positions(sequence, grid_N3, IMAGE, 2))
    vision = join_images(images)
    assert len(vision.grid_U3) == 3 and len(vision.order_N) == 4
    ours = hidden_states(model, tokens_BL, positions_3BL, vision)[real_BL]

    shown = [its for its in images if its is not None]
    theirs = model.model(
        input_ids=tokens_BL,
        attention_mask=real_BL.long(),
        pixel_values=torch.cat([its.pixels for its in shown]),
        image_grid_thw=torch.cat([its.grid_N3 for its in shown]),
        mm_token_type_ids=(tokens_BL == IMAGE).int(),
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
        hidden_states(model, tokens_BL, positions_3BL, None),
        model.model(input_ids=tokens_BL).last_hidden_state,
    )
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not [name for name in gradients(model, ours) if name.startswith("model.visual")]


@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_a_placeholder_that_shows_the_wrong_image_would_be_noticed(model: PreTrainedModel):
    sequences, images = sibling_batch()
    right = join_images([images[0], encode_images(PROCESSOR, [picture(96, 64, seed=4)])])
    swapped = VisionInputs(pixels=right.pixels, grid_U3=right.grid_U3, order_N=right.order_N.flip(0))
    tokens_BL, _ = padded([sequences[0]] * 2)
    one = mrope_positions(sequences[0], images[0].grid_N3.numpy(), IMAGE, 2)
    positions_3BL = torch.from_numpy(one)[:, None].expand(3, 2, -1)
    with torch.no_grad():
        a, b = (hidden_states(model, tokens_BL, positions_3BL, vision) for vision in (right, swapped))
    assert torch.allclose(a, b.flip(0), rtol=0, atol=1e-5)
    assert (a - b).abs().max() > 1e-2
