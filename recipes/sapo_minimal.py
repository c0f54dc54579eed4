"""SAPO on one screen, to be read rather than used: digit sums on a CPU, without Ray and without vLLM.

What train() does beyond this is engineering: engines in other processes, weight sync, checkpoints, resume, isolation.

Shapes: Q prompts of a step, G completions of each, B = Q·G sequences of P prompt and T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from policies.loading import load_policy, load_processor, vision_token_ids
from rewards.checking import attempt
from rewards.loading import load_reward
from rl.cli import main
from rl.config import ColdStartConfig
from rl.sft import cold_start
from rollout import Completion, Prompt
from rollout.prompts import PromptStream, prompts_from
from rollout.sources.digit_sums import digit_sums, to_prompt


@dataclass(frozen=True, kw_only=True)
class SapoMinimal:
    """SAPO, the bare algorithm."""

    run_dir: Path = Path("runs/sapo_minimal")
    """Where metrics.jsonl and the learnt policy go."""
    steps: int = 40
    """Steps: each one generates, scores, weighs and learns."""
    seed: int = 0
    """Seeds the order of prompts and every sampled token."""
    reward: str | None = None
    """FILE.py:FUNCTION, a reward of yours instead of sum_is_right."""
    prompts_per_step: int = 16
    """Q, prompts of each step."""
    group_size: int = 8
    """G, completions per prompt; at least 2."""
    num_minibatches: int = 2
    """Optimizer updates of each step."""
    learning_rate: float = 2e-4
    """Of AdamW."""
    tau_pos: float = 1.0
    """Gate temperature for positive advantages."""
    tau_neg: float = 1.05
    """Gate temperature for the others."""
    max_tokens: int = 16
    """Longest response, in tokens."""


def sum_is_right(prompt: Prompt, completion: Completion) -> float:
    """1 if the number behind the last `=` is the sum."""
    return float(completion.text.rpartition("=")[2] == prompt.answer.rpartition("=")[2])


def sapo_loss(
    logprobs_BT: Tensor, old_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, config: SapoMinimal
) -> Tensor:
    """− 1/B Σ_i A_i · 1/|y_i| Σ_t f(r_it),  f(r) = 4/τ · σ(τ (r − 1)),  r = π_new / π_old  (arXiv 2511.20347, Eq. 5, 6)."""
    advantages_B1 = advantages_B[:, None]
    tau_B1 = torch.where(advantages_B1 > 0, config.tau_pos, config.tau_neg)
    ratio_BT = (logprobs_BT - old_BT).masked_fill(~mask_BT, 0).clamp(-20, 20).exp()
    gate_BT = 4 / tau_B1 * torch.sigmoid(tau_B1 * (ratio_BT - 1))
    token_mean_B = (gate_BT * advantages_B1 * mask_BT).sum(1) / mask_BT.sum(1)
    return -token_mean_B.mean()


def ask(processor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Prompts → what the model's forward takes. All pictures are of one size and all questions equal: no padding."""
    texts = [
        processor.apply_chat_template(list(p.messages), tokenize=False, add_generation_prompt=True) for p in prompts
    ]
    return dict(processor(text=texts, images=[p.images for p in prompts], return_tensors="pt"))


def repeated(inputs: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Each prompt `times` times, one behind the other; the patches of a picture stay together."""
    num_prompts = len(inputs["input_ids"])
    return {k: x.unflatten(0, (num_prompts, -1)).repeat_interleave(times, 0).flatten(0, 1) for k, x in inputs.items()}


def response_logprobs(policy, inputs: dict[str, Tensor], responses_BT: Tensor, banned: list[int]) -> Tensor:
    """[B, T] log π(token): vision tokens, which sampling never takes, have no share in the probability here either."""
    num_new = responses_BT.shape[1]
    extended = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], responses_BT], 1),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, num_new), value=1),
        "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, num_new)),
    }
    logits_BTV = policy(**extended, use_cache=False, logits_to_keep=num_new + 1).logits[:, :-1]
    logits_BTV[..., banned] = -torch.inf
    return logits_BTV.log_softmax(-1).gather(-1, responses_BT[..., None])[..., 0]


def run(config: SapoMinimal) -> None:
    """The loop."""
    torch.manual_seed(config.seed)
    prompts = prompts_from(digit_sums("train"), to_prompt)
    start = cold_start(ColdStartConfig(), prompts)
    processor, policy = load_processor(start), load_policy(start, dtype=torch.float32, device="cpu").eval()
    reward = load_reward(config.reward) if config.reward else sum_is_right
    banned, end = vision_token_ids(processor), processor.tokenizer.eos_token_id
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0)
    stream = PromptStream(prompts, batch_size=config.prompts_per_step, seed=config.seed)
    config.run_dir.mkdir(parents=True, exist_ok=True)

    for step in range(1, config.steps + 1):
        # Generate: G completions of each prompt, sampled from the policy as it is (no top-k or top-p, which would bias r).
        batch = stream.next_batch()
        inputs = repeated(ask(processor, batch), config.group_size)
        tokens_BL = policy.generate(
            **inputs, max_new_tokens=config.max_tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            suppress_tokens=banned,
        )  # fmt: skip
        responses_BT = tokens_BL[:, inputs["input_ids"].shape[1] :]
        ended_BT = (responses_BT == end).cumsum(1)
        mask_BT = (ended_BT - (responses_BT == end).long()) == 0  # up to the first end token, and with it

        # Score.
        completions = [Completion(text=text) for text in processor.batch_decode(responses_BT, skip_special_tokens=True)]
        asked = [prompt for prompt in batch for _ in range(config.group_size)]
        rewards_B = torch.tensor([attempt(reward, p, c).reward for p, c in zip(asked, completions, strict=True)])

        # Weigh: a completion is as good as it is better than its siblings.
        rewards_QG = rewards_B.view(-1, config.group_size)
        std_Q1, mean_Q1 = torch.std_mean(rewards_QG, 1, correction=0, keepdim=True)
        advantages_B = ((rewards_QG - mean_Q1) / (std_Q1 + 1e-6)).flatten()

        # Learn: π_old is the policy that sampled; from the second minibatch on the ratios leave 1, and the gate works.
        with torch.no_grad():
            old_BT = response_logprobs(policy, inputs, responses_BT, banned)
        for share in torch.arange(len(responses_BT)).chunk(config.num_minibatches):
            part = {k: x.unflatten(0, (len(responses_BT), -1))[share].flatten(0, 1) for k, x in inputs.items()}
            logprobs_BT = response_logprobs(policy, part, responses_BT[share], banned)
            loss = sapo_loss(logprobs_BT, old_BT[share], advantages_B[share], mask_BT[share], config)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(f"step {step:3d}  reward {rewards_B.mean():.3f}", flush=True)


if __name__ == "__main__":
    main(run, SapoMinimal, __doc__)
