"""Log-probabilities in chunks against a plain log_softmax over the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from policies.logprobs import token_logprobs

NUM_TOKENS, HIDDEN, VOCABULARY = 13, 8, 50
NO_BAN = torch.zeros(0, dtype=torch.long)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(NUM_TOKENS, HIDDEN, generator=generator).requires_grad_()
    weight_VH = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    return hidden_NH, weight_VH, torch.randint(0, 40, (NUM_TOKENS,), generator=generator)


def chunked(monkeypatch: pytest.MonkeyPatch, tokens_per_chunk: int) -> None:
    monkeypatch.setitem(token_logprobs.__kwdefaults__, "chunk_elements", tokens_per_chunk * VOCABULARY)


def naive(inputs, banned: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    hidden_NH, weight_VH, targets_N = inputs
    kept = [token for token in range(VOCABULARY) if token not in banned]
    log_p = torch.log_softmax((hidden_NH @ weight_VH[kept].T) / temperature, 1)
    places = torch.tensor([kept.index(token) for token in targets_N.tolist()])
    return log_p.gather(1, places[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


def gradients(inputs, logprobs_N: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, NUM_TOKENS)
    return list(torch.autograd.grad((weights * logprobs_N).sum(), inputs[:2]))


@pytest.mark.parametrize("tokens_per_chunk", [1, 5, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("banned", [[], [40], [41, 44, 49]])
def test_values_gradients_and_entropies_equal_a_plain_log_softmax(
    monkeypatch, inputs, banned, temperature, tokens_per_chunk
):
    chunked(monkeypatch, tokens_per_chunk)
    expected, expected_entropy = naive(inputs, banned, temperature)
    got, entropy = token_logprobs(*inputs, torch.tensor(banned, dtype=torch.long), temperature=temperature)
    assert torch.allclose(got, expected, rtol=0, atol=1e-5)
    assert torch.allclose(entropy, expected_entropy, rtol=0, atol=1e-5)
    for ours, theirs in zip(gradients(inputs, got), gradients(inputs, expected), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_several_chunks_equal_one(monkeypatch, inputs):
    whole, entropy = token_logprobs(*inputs, NO_BAN)
    whole_gradients = gradients(inputs, whole)
    chunked(monkeypatch, 4)
    parts, parts_entropy = token_logprobs(*inputs, NO_BAN)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)
    assert torch.allclose(parts_entropy, entropy, rtol=0, atol=1e-6)
    for ours, theirs in zip(gradients(inputs, parts), whole_gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=5e-6)


def shapes_kept_for_backward(inputs) -> set[tuple[int, ...]]:
    saved: set[tuple[int, ...]] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.add(tuple(t.shape)) or t, lambda t: t):
        token_logprobs(*inputs, NO_BAN)
    return saved


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch, inputs):
    for tokens_per_chunk in (NUM_TOKENS, 4):
        chunked(monkeypatch, tokens_per_chunk)
        assert {shape for shape in shapes_kept_for_backward(inputs) if len(shape) == 2} == {
            (NUM_TOKENS, HIDDEN),
            (VOCABULARY, HIDDEN),
        }


def test_handwritten_gradient_agrees_with_finite_differences(inputs):
    hidden_NH, weight_VH, targets_N = (x.detach() for x in inputs)
    hidden_NH, weight_VH = hidden_NH[:4].double().requires_grad_(), weight_VH.double().requires_grad_()

    def logprobs_in_chunks(hidden: Tensor, weight: Tensor) -> Tensor:
        banned = torch.tensor([40, 44])
        return token_logprobs(hidden, weight, targets_N[:4], banned, temperature=0.7, chunk_elements=3 * VOCABULARY)[0]

    assert torch.autograd.gradcheck(logprobs_in_chunks, (hidden_NH, weight_VH))


def test_a_frozen_vocabulary_gets_no_gradient_and_leaves_that_of_the_hidden_states_alone(inputs):
    hidden_NH, weight_VH, targets_N = inputs
    expected, _ = gradients(inputs, token_logprobs(*inputs, NO_BAN)[0])
    got, _ = token_logprobs(hidden_NH, weight_VH.detach(), targets_N, NO_BAN)
    (gradient,) = torch.autograd.grad((torch.linspace(-1, 1, NUM_TOKENS) * got).sum(), hidden_NH)
    assert torch.equal(gradient, expected)


def test_uniform_distribution_has_the_log_of_its_size():
    banned = torch.tensor([0, 7])
    got, entropy = token_logprobs(torch.zeros(3, HIDDEN), torch.ones(10, HIDDEN), torch.tensor([1, 2, 9]), banned)
    assert got.tolist() == pytest.approx([-math.log(8)] * 3)  # 10 tokens, of which 2 are banned
    assert entropy.tolist() == pytest.approx([math.log(8)] * 3)


def test_banned_tokens_take_no_probability_and_leave_no_nan(inputs):
    hidden_NH, weight_VH, targets_N = inputs
    banned = torch.tensor([45, 46])
    with torch.no_grad():
        weight_VH[45] = 1e4  # would drown everything else
    got, entropy = token_logprobs(hidden_NH, weight_VH, targets_N, banned)
    assert got.isfinite().all() and entropy.isfinite().all()
    hidden_gradient, weight_gradient = gradients(inputs, got)
    assert hidden_gradient.isfinite().all()
    assert weight_gradient[banned].tolist() == [[0.0] * HIDDEN] * 2


def test_a_banned_target_has_probability_zero_and_spoils_no_other_token(inputs):
    hidden_NH, weight_VH, targets_N = inputs
    targets_N[3] = 45
    got, entropy = token_logprobs(hidden_NH, weight_VH, targets_N, torch.tensor([45]))
    assert got[3].item() == -math.inf
    assert entropy.isfinite().all()
    others = torch.arange(NUM_TOKENS) != 3
    (gradient,) = torch.autograd.grad(got[others].sum(), hidden_NH)
    assert gradient.isfinite().all()


def test_results_are_float32_under_bfloat16_and_entropy_has_no_gradient(inputs):
    with torch.autocast("cpu", torch.bfloat16):
        got, entropy = token_logprobs(*inputs, NO_BAN)
    exact, _ = token_logprobs(*inputs, NO_BAN)
    assert got.dtype == entropy.dtype == torch.float32
    assert got.requires_grad and not entropy.requires_grad
    assert torch.allclose(got, exact, rtol=0, atol=0.15)  # logits of size 10 are rounded by up to 2⁻⁸ · 10


def test_no_tokens_at_all_still_go_through_the_backward_pass(inputs):
    hidden_NH, weight_VH, targets_N = inputs
    got, entropy = token_logprobs(hidden_NH[:0], weight_VH, targets_N[:0], NO_BAN)
    assert got.shape == entropy.shape == (0,)
    got.sum().backward()
    assert hidden_NH.grad.abs().sum().item() == 0.0
