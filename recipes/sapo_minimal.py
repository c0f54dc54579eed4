"""SAPO on one screen, to be read rather than used: sums of handwritten digits on a CPU, without Ray and vLLM.

What train() does beyond this is engineering: fast engines, weight sync, isolated rewards, checkpoints, metrics.
Shapes: G completions of each prompt, B sequences in all, P prompt and T response tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from policies.export import save_policy
from policies.loading import load_policy, load_processor, vision_token_ids
from rewards.loading import load_reward
from rewards.workers.call import call_verifier
from rl.cli import main
from rl.config import ColdStartConfig
from rl.sft import cold_start
from rollout import Completion, Prompt
from rollout.data.prompts import prompts_from
from rollout.data.stream import PromptStream
from rollout.tasks.digit_sums import digit_sums, sum_is_right, to_prompt


@dataclass(frozen=True, kw_only=True)
class SapoMinimal:
    """The bare algorithm."""

    model: str = "cold-start"
    """A folder that from_pretrained loads; cold-start makes and trains the small policy first."""
    run_dir: Path = Path("runs/sapo_minimal")
    """Folder of the trained policy, which from_pretrained loads."""
    steps: int = 60
    """Steps: each one generates, scores, weighs and learns."""
    seed: int = 0
    """Seeds the order of prompts and every sampled token."""
    reward: str | None = None
    """FILE.py:FUNCTION, a reward of yours that replaces the recipe's."""
    prompts_per_step: int = 16
    """Prompts of each step."""
    group_size: int = 8
    """Completions per prompt, whose rewards are compared with each other."""
    num_minibatches: int = 2
    """Optimizer updates of each step."""
    learning_rate: float = 1e-4
    """AdamW's learning rate, after a linear rise over ten updates."""


def sapo_loss(logprobs_BT: Tensor, old_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """− 1/B Σ_i A_i · 1/|y_i| Σ_t f(r_it),  f(r) = 4/τ · σ(τ (r − 1)),  r = π_θ / π_old  (arXiv 2511.20347)."""
    advantages_B1 = advantages_B[:, None]
    tau_B1 = torch.where(advantages_B1 > 0, 1.0, 1.05)
    ratio_BT = (logprobs_BT - old_BT).masked_fill(~mask_BT, 0).clamp(-20, 20).exp()
    gate_BT = 4 / tau_B1 * torch.sigmoid(tau_B1 * (ratio_BT - 1))
    token_mean_B = (gate_BT * advantages_B1 * mask_BT).sum(1) / mask_BT.sum(1)
    return -token_mean_B.mean()


def model_inputs(processor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Chat template, pixels, placeholders expanded. Pictures have one size, questions one length: no padding."""
    texts = [processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True) for prompt in prompts]
    return dict(processor(text=texts, images=[prompt.images for prompt in prompts], return_tensors="pt"))


def response_logprobs(policy, inputs: dict[str, Tensor], responses_BT: Tensor, banned_ids: list[int]) -> Tensor:
    """[B, T] log π(token). Vision tokens are never sampled, so they take no part in the normalisation either."""
    num_new = responses_BT.shape[1]
    whole = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], responses_BT], 1),
        "attention_mask": pad(inputs["attention_mask"], (0, num_new), value=1),
        "mm_token_type_ids": pad(inputs["mm_token_type_ids"], (0, num_new)),
    }
    logits_BTV = policy(**whole, use_cache=False, logits_to_keep=num_new + 1).logits[:, :-1]
    logits_BTV = logits_BTV.index_fill(-1, torch.tensor(banned_ids), -torch.inf)
    return logits_BTV.log_softmax(-1).gather(-1, responses_BT[..., None])[..., 0]


def run(config: SapoMinimal) -> None:
    """The loop."""
    torch.manual_seed(config.seed)
    prompts = prompts_from(digit_sums("train"), to_prompt)
    model = config.model if config.model != "cold-start" else cold_start(ColdStartConfig(), prompts)
    processor, policy = load_processor(model), load_policy(model, dtype=torch.float32, device="cpu").eval()
    banned_ids, end_id = vision_token_ids(processor), processor.tokenizer.eos_token_id
    reward = load_reward(config.reward) if config.reward else sum_is_right
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / 10))
    stream = PromptStream(prompts, batch_size=config.prompts_per_step, seed=config.seed)

    for step in range(1, config.steps + 1):
        started = time.perf_counter()
        # Generate from the full distribution: top-k or top-p would make the ratios wrong.
        repeated = [prompt for prompt in stream.next_batch() for _ in range(config.group_size)]
        inputs = model_inputs(processor, repeated)
        sampling = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, suppress_tokens=banned_ids)
        tokens_BL = policy.generate(**inputs, **sampling, max_new_tokens=16)
        responses_BT = tokens_BL[:, inputs["input_ids"].shape[1] :]
        is_end_BT = (responses_BT == end_id).long()
        mask_BT = is_end_BT.cumsum(1) - is_end_BT == 0  # all up to the first end token, and that one too
        chosen = [row[mask] for row, mask in zip(responses_BT, mask_BT, strict=True)]

        # Score.
        texts = processor.batch_decode(responses_BT, skip_special_tokens=True)
        completions = [Completion(text=text, token_ids=ids.numpy()) for text, ids in zip(texts, chosen, strict=True)]
        scores = [
            call_verifier(reward, prompt, completion) for prompt, completion in zip(repeated, completions, strict=True)
        ]
        if errors := [score.error for score in scores if score.error]:
            raise ValueError(errors[0])
        rewards_B = torch.tensor([score.reward for score in scores])

        # Advantages: a completion is compared with its siblings.
        deviation, mean = torch.std_mean(rewards_B.view(-1, config.group_size), 1, correction=0, keepdim=True)
        advantages_B = ((rewards_B.view(-1, config.group_size) - mean) / (deviation + 1e-6)).flatten()

        # Learn. All ratios of the first minibatch are 1; the gate acts from the second on.
        with torch.no_grad():
            old_BT = response_logprobs(policy, inputs, responses_BT, banned_ids)
        for share in torch.arange(len(repeated)).chunk(config.num_minibatches):
            part = {name: x.unflatten(0, (len(repeated), -1))[share].flatten(0, 1) for name, x in inputs.items()}
            logprobs_BT = response_logprobs(policy, part, responses_BT[share], banned_ids)
            sapo_loss(logprobs_BT, old_BT[share], advantages_B[share], mask_BT[share]).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        print(f"step {step:3d}  reward {rewards_B.mean():.3f}  {time.perf_counter() - started:.1f} s", flush=True)
    print(f"policy: {save_policy(policy, processor, config.run_dir)}")


if __name__ == "__main__":
    main(run, SapoMinimal, __doc__)
