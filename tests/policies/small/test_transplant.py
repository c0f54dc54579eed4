"""Carried weights say what their source says; what cannot be carried is refused; what the scale has touched does not learn."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from policies.export import save_policy
from policies.frozen import frozen_parameters
from policies.inputs import encode_images
from policies.loading import load_policy, load_processor, vision_token_ids
from policies.logprobs import token_logprobs
from policies.small.qwen3_vl import save_small_policy, small_tokenizer
from policies.small.transplant import mrope_section, refuse_unsound, text_scale, transplant
from rewards import Score
from rl.config import LearnerConfig, OptimizerConfig, RolloutConfig, TrainConfig
from rl.learner import Learner
from rl.samples import Sample, make_samples
from rollout import Prompt
from rollout.engine.spec import EngineSpec
from rollout.pool.engine_pool import EnginePool
from rollout.types import Sampling

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,  # the second DeepStack level joins behind the second layer and must be heard of
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that attention has something to say
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SOURCES = {
    "llama, tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, untied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "qwen2, with biases": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True)),
}


def language_model(name: str) -> PreTrainedModel:
    make, config = SOURCES[name]
    torch.manual_seed(0)
    source = make(copy.deepcopy(config)).eval()
    with torch.no_grad():  # fresh norms are all ones and biases all zeros: then much could go wrong unseen
        for parameter in source.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return source


def language_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and two marks; it knows of no pictures."""
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in bytes_to_unicode().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transplant(language_model("llama, tied"), language_tokenizer(), tmp_path_factory.mktemp("carried"))


@pytest.mark.parametrize("name", SOURCES)
def test_carried_weights_give_the_log_probabilities_of_their_source(tmp_path: Path, name: str):
    source = language_model(name)
    policy = load_policy(transplant(source, language_tokenizer(), tmp_path), dtype=torch.float32, device="cpu")
    token_ids = torch.randint(0, 256, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(token_ids).logits.log_softmax(-1)
        found = policy(input_ids=token_ids).logits.log_softmax(-1)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_new_words_are_banned_so_that_the_old_ones_share_the_whole_probability(tmp_path: Path):
    source = language_model("llama, tied")
    source.resize_token_embeddings(258)  # no room for the four vision tokens
    policy = load_policy(transplant(source, language_tokenizer(), tmp_path), dtype=torch.float32, device="cpu")
    assert len(policy.lm_head.weight) == 262
    token_ids = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(token_ids).logits.log_softmax(-1)[0, :-1].gather(1, token_ids[0, 1:, None])[:, 0]
        hidden_NH = policy.model(input_ids=token_ids).last_hidden_state[0, :-1]
        banned = torch.tensor(vision_token_ids(policy.config))
        found, _ = token_logprobs(hidden_NH, policy.lm_head.weight, token_ids[0, 1:], banned)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_tied_embeddings_are_one_matrix_scaled_by_a_power_of_two(folder: Path):
    # eps 2^-8: c² ≥ 2^32 / 2^-8 = 2^40, so c = 2^20; eps 2^-9 needs c² ≥ 2^41, so c = 2^21.
    assert text_scale(LlamaConfig(rms_norm_eps=2**-8)) == 2**20
    assert text_scale(LlamaConfig(rms_norm_eps=2**-9)) == 2**21
    assert text_scale(Qwen3Config(rms_norm_eps=2**-8)) == 1
    scale = text_scale(LlamaConfig(**SIZES))
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    source = language_model("llama, tied")
    words = source.model.embed_tokens.weight.detach()
    assert torch.equal(weights["model.language_model.embed_tokens.weight"][:300], words * scale)
    assert torch.equal(weights["model.language_model.norm.weight"], source.model.norm.weight.detach() / scale)
    query = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(weights[f"model.language_model.{query}"], source.model.get_parameter(query).detach())
    assert json.loads((folder / "carried.json").read_text())["scale"] == scale


def test_a_smaller_scale_shows_the_norms_of_queries_and_keys(tmp_path: Path):
    source = language_model("llama, tied")
    policy = load_policy(
        transplant(source, language_tokenizer(), tmp_path, scale=64.0), dtype=torch.float32, device="cpu"
    )
    token_ids = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gap = (source(token_ids).logits - policy(input_ids=token_ids).logits).abs().max()
    assert gap > 1e-2


def test_rotated_pairs_are_shared_as_in_the_published_models():
    assert [mrope_section(size) for size in (128, 64, 32, 16, 8)] == [
        [24, 20, 20],
        [12, 10, 10],
        [6, 5, 5],
        [4, 2, 2],
        [2, 1, 1],
    ]


def test_vision_tokens_are_added_once_and_pictures_are_rendered(folder: Path, tmp_path: Path):
    processor = load_processor(folder)
    assert vision_token_ids(processor) == [258, 259, 260, 261]
    content = [{"type": "image"}, {"type": "text", "text": "sum?"}]
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": content}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nAdd.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>sum?<|im_end|>\n<|im_start|>assistant\n"
    )
    knows_them = small_tokenizer()
    again = load_processor(transplant(language_model("qwen3"), knows_them, tmp_path))
    assert vision_token_ids(again) == [259, 260, 261, 262]
    assert len(again.tokenizer) == 263


def test_pictures_join_the_stream_at_the_size_of_words(folder: Path):
    policy = load_policy(folder, dtype=torch.float32, device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    [picture] = encode_images(load_processor(folder), [Image.fromarray(noise)])
    with torch.no_grad():
        seen = policy.model.get_image_features(picture.pixels, torch.tensor([picture.grid]), return_dict=True)
    words = policy.model.language_model.embed_tokens.weight.detach()
    for features in (seen.pooler_output[0], *(level[0] for level in seen.deepstack_features)):
        assert 0.2 < features.square().mean().sqrt() / words.square().mean().sqrt() < 5


def test_a_step_moves_everything_but_what_the_scale_has_touched(folder: Path):
    config = TrainConfig(
        model=str(folder),
        num_minibatches=1,
        learner=LearnerConfig(dtype="float32"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_updates=0),
    )
    learner = Learner(config, folder)
    before = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    sample = Sample(
        prompt_id="a",
        token_ids=np.array([65, 258, *[260] * 4, 259, 66, 67, 68], np.int32),
        loss_mask=np.array([False] * 7 + [True] * 3),
        rollout_logprobs=np.zeros(10, np.float32),
        advantage=1.0,
        images=[image],
    )
    report = learner.step([[sample]])
    assert 0 < report.metrics["policy/grad_norm"] < 1e3
    moved = {name for name, parameter in learner.model.named_parameters() if not torch.equal(parameter, before[name])}
    frozen = before.keys() - moved
    assert {name.removeprefix("model.") for name in frozen} == {
        "language_model.embed_tokens.weight",
        "language_model.norm.weight",
        *(
            f"language_model.layers.{layer}.{part}.weight"
            for layer in (0, 1, 2)
            for part in ("self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm", "mlp.down_proj")
        ),
        *(
            f"visual.{merger}.linear_fc2.{kind}"
            for merger in ("merger", "deepstack_merger_list.0", "deepstack_merger_list.1")
            for kind in ("weight", "bias")
        ),
    }


def test_of_other_policies_nothing_is_frozen(tmp_path: Path):
    small = load_policy(save_small_policy(tmp_path / "small", kind="dense", seed=0), dtype=torch.float32, device="cpu")
    copied = load_policy(
        transplant(language_model("qwen3"), language_tokenizer(), tmp_path / "qwen3"), dtype=torch.float32, device="cpu"
    )
    assert frozen_parameters(small) == frozen_parameters(copied) == []


def test_a_checkpoint_names_its_frozen_parameters_and_an_older_one_freezes_the_same(folder: Path, tmp_path: Path):
    policy = load_policy(folder, dtype=torch.float32, device="cpu")
    names = json.loads((folder / "config.json").read_text())["frozen_parameters"]
    # Embedding and last norm; 4 matrices and norms in each of 3 layers; weight and bias of 3 mergers.
    assert len(names) == len(set(names)) == 2 + 4 * 3 + 2 * 3
    assert set(names) <= {name for name, _ in policy.named_parameters()}
    again = save_policy(policy, load_processor(folder), tmp_path / "again")
    assert frozen_parameters(load_policy(again, dtype=torch.float32, device="cpu")) == names
    written = json.loads((again / "config.json").read_text())
    del written["frozen_parameters"]
    (again / "config.json").write_text(json.dumps(written))
    assert frozen_parameters(load_policy(again, dtype=torch.float32, device="cpu")) == names


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            MistralConfig(**SIZES),
            "model_type = 'mistral' cannot be transplanted into Qwen3-VL: pass a model of llama, qwen2, qwen3",
        ),
        (LlamaConfig(**SIZES, attention_bias=True), "attention_bias = True, a bias on the attention's output"),
        (LlamaConfig(**SIZES, mlp_bias=True), "mlp_bias = True, which Qwen3 lacks"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act = 'gelu', but Qwen3-VL's is silu"),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "rope_type = 'linear', which interleaved MRoPE does not support",
        ),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=32, max_window_layers=1),
            "layer_types with sliding_attention",
        ),
        (LlamaConfig(**SIZES | {"head_dim": 6}), "head_dim = 6, whose pairs cannot be divided"),
    ],
    ids=["family", "attention bias", "mlp bias", "activation", "rope scaling", "sliding window", "head_dim"],
)
def test_what_qwen3_vl_cannot_compute_is_refused(config: Any, told: str):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        refuse_unsound(config)


def test_a_source_without_a_chat_template_is_refused(tmp_path: Path):
    tokenizer = language_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: set tokenizer.chat_template"):
        transplant(language_model("qwen3"), tokenizer, tmp_path)


@pytest.mark.engine
def test_vllm_gives_a_carried_policy_the_learners_log_probabilities(cluster: None, tmp_path: Path):
    sizes = SIZES | {"hidden_size": 128, "head_dim": 32}  # vLLM's attention on CPUs takes no smaller heads
    torch.manual_seed(0)
    folder = transplant(
        LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)), language_tokenizer(), tmp_path
    )
    rollout = RolloutConfig(dtype="float32", max_tokens=24, max_model_len=128, kv_cache_gib=1)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = [{"type": "image"}, {"type": "text", "text": "sum?"}]
    asked = Prompt(id="a", messages=[{"role": "user", "content": content}], images=[Image.fromarray(noise)])
    banned = tuple(vision_token_ids(load_processor(folder)))
    pool = EnginePool(EngineSpec(model=folder, config=rollout, backend="shared_memory", banned_ids=banned))
    try:
        [group] = pool.generate([asked], Sampling(temperature=1.0, max_tokens=24), [[1, 2, 3, 4]], policy_version=0)
    finally:
        pool.close()
    [samples] = make_samples([group], [[Score(reward=0.0)] * len(group.completions)])
    learner = Learner(TrainConfig(model=str(folder), rollout=rollout, learner=LearnerConfig(dtype="float32")), folder)
    [batch] = learner.make_microbatches(samples)
    [found_BT] = learner.old_logprobs([batch])
    assert batch.mask_BT.sum() > 30
    torch.testing.assert_close(found_BT, batch.rollout_logprobs_BT, rtol=0, atol=1e-4)
