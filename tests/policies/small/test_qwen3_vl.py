from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from policies.small.qwen3_vl import (
    SPECIAL_TOKENS,
    TOKEN_IDS,
    save_small_policy,
    small_config,
    small_model,
    small_processor,
    small_tokenizer,
)

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Sum?"}]}]
TOKENIZER = small_tokenizer()


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory):
    """The processor as everybody else sees it: written to a folder and found again by AutoProcessor."""
    return AutoProcessor.from_pretrained(save_small_policy(tmp_path_factory.mktemp("small"), kind="dense", seed=0))


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_dense_policy_has_between_3_and_4_million_parameters():
    model = small_model(small_config("dense"), seed=0)
    assert 3e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_policy_is_a_whole_qwen3_vl(kind: str):
    config = small_config(kind)
    text, vision = config.text_config, config.vision_config
    assert config.model_type == {"dense": "qwen3_vl", "moe": "qwen3_vl_moe"}[kind]
    assert vision.deepstack_visual_indexes == [1, 2]
    assert text.rope_parameters["mrope_interleaved"]
    assert sum(text.rope_parameters["mrope_section"]) == text.head_dim // 2
    model = small_model(config, seed=0)
    assert len(model.model.visual.deepstack_merger_list) == 2
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_moe_policy_routes_each_token_to_2_of_8_experts():
    text = small_config("moe").text_config
    assert (text.num_experts, text.num_experts_per_tok, text.norm_topk_prob) == (8, 2, True)


def test_text_fields_make_a_larger_policy_whose_vision_tower_still_fits():
    config = small_config("dense", hidden_size=256, num_hidden_layers=2)
    assert (config.text_config.hidden_size, config.vision_config.out_hidden_size) == (256, 256)
    assert config.text_config.num_hidden_layers == 2


def test_one_seed_gives_one_policy_and_leaves_the_random_state_alone():
    torch.manual_seed(7)
    expected_draw = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (small_model(small_config("dense"), seed=seed).lm_head.weight for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected_draw)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_matrix_starts_at_one_scale(kind: str):
    model = small_model(small_config(kind), seed=0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name


@settings(deadline=None)
@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_any_text_survives_the_tokenizer_byte_by_byte(text: str):
    token_ids = TOKENIZER(text).input_ids
    assert token_ids == list(text.encode())
    assert TOKENIZER.decode(token_ids) == text


def test_composed_characters_and_spaces_survive_saving_and_loading(reloaded):
    text = " e\u0301 = \u00e9 ,  'll \r\n\n\0 日本 🙂 "  # Qwen's own tokenizer class would compose the first letter
    assert reloaded.tokenizer(text).input_ids == list(text.encode())
    assert reloaded.tokenizer.decode(list(text.encode())) == text


def test_special_tokens_are_one_token_each_and_hidden_from_plain_text(reloaded):
    assert [TOKEN_IDS[token] for token in SPECIAL_TOKENS] == list(range(256, 263))
    assert reloaded.tokenizer("".join(SPECIAL_TOKENS)).input_ids == list(range(256, 263))
    assert reloaded.tokenizer.decode([*b"17", TOKEN_IDS["<|im_end|>"]], skip_special_tokens=True) == "17"


def test_end_and_padding_tokens_agree_in_tokenizer_and_generation_config(reloaded):
    generation = small_model(small_config("dense"), seed=0).generation_config
    assert reloaded.tokenizer.eos_token_id == generation.eos_token_id == TOKEN_IDS["<|im_end|>"]
    assert reloaded.tokenizer.pad_token_id == generation.pad_token_id == TOKEN_IDS["<|endoftext|>"]


def test_chat_template_spends_eight_tokens_on_a_question_with_an_image(reloaded):
    text = reloaded.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert text == "<|im_start|>u<|vision_start|><|image_pad|><|vision_end|>Sum?<|im_end|><|im_start|>a"
    assert len(reloaded.tokenizer(text).input_ids) == 8 + len("Sum?")


def test_chat_template_renders_every_role_and_plain_text(reloaded):
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "tool")]
    assert reloaded.apply_chat_template(messages) == "".join(
        f"<|im_start|>{role[0]}{role}<|im_end|>" for role in ("system", "user", "assistant", "tool")
    )


def test_picture_of_192_by_64_pixels_is_12_image_tokens_and_not_resized(reloaded):
    image = picture(192, 64)
    text = reloaded.apply_chat_template(QUESTION, add_generation_prompt=True)
    inputs = reloaded(text=[text], images=[image], return_tensors="pt")
    assert inputs.image_grid_thw.tolist() == [[1, 4, 12]]
    assert (inputs.input_ids == TOKEN_IDS["<|image_pad|>"]).sum() == 12
    # The first patch, [channel, time, 16, 16], is the top left corner of the picture, scaled to [-1, 1] and still.
    corner = torch.tensor(np.asarray(image)[:16, :16]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(inputs.pixel_values[0].view(3, 2, 16, 16), corner[:, None].expand(3, 2, 16, 16))


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (2, 2)), ((512, 512), (32, 32)), ((1024, 1024), (32, 32))])
def test_pictures_keep_their_size_up_to_512_pixels_square(size: tuple[int, int], grid: tuple[int, int]):
    inputs = small_processor().image_processor([picture(*size)], return_tensors="pt")
    assert tuple(inputs.image_grid_thw[0, 1:].tolist()) == grid


def test_video_is_timed_frame_pairs(reloaded):
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    metadata = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    inputs = reloaded(text=["<|video_pad|>"], videos=[frames], video_metadata=[metadata], return_tensors="pt")
    pair = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    assert reloaded.tokenizer.decode(inputs.input_ids[0]) == f"<0.2 seconds>{pair}<1.2 seconds>{pair}"


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be 'dense' or 'moe', got 'mixture'"):
        small_config("mixture")
