"""What vLLM answers, as a completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rollout.types import Completion, Response

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


def as_response(index: int, output: RequestOutput, *, asked_version: int, first_version: int) -> Response:
    """vLLM's output of a request of one completion.

    Args:
        index: Which of the group's seeds it answers.
        output: Finished.
        asked_version: Of the weights when it was asked, for a completion without a token.
        first_version: Of the weights that vLLM started with, which it calls "default".
    """
    (sampled,) = output.outputs
    token_ids = np.array(sampled.token_ids, np.int32)
    logprobs = [step[token].logprob for step, token in zip(sampled.logprobs or [], sampled.token_ids, strict=True)]
    versions = _token_versions(output, first_version)
    first = int(versions[0]) if len(versions) else asked_version
    read, chosen = split_experts(sampled.routed_experts, len(output.prompt_token_ids), len(token_ids))
    completion = Completion(
        text=sampled.text,
        token_ids=token_ids,
        logprobs=np.array(logprobs, np.float32),
        finish_reason="stop" if sampled.finish_reason == "stop" else "length",
        policy_version=first,
        token_versions=versions if (versions != first).any() else None,
        routed_experts=chosen,
    )
    return Response(
        index=index,
        completion=completion,
        prompt_token_ids=np.array(output.prompt_token_ids, np.int32),
        prompt_routed_experts=read,
    )


def as_reading(index: int, output: RequestOutput, *, version: int) -> Response:
    """vLLM's output of a request that was to be read: how likely it found each token after those before.

    Args:
        index: As in `as_response`.
        output: Finished, with the log-probabilities of its prompt.
        version: Of the weights.

    Raises:
        RuntimeError: If not all tokens have one.
    """
    token_ids, told = output.prompt_token_ids, output.prompt_logprobs or []
    if len(told) != len(token_ids):
        raise RuntimeError(
            f"vLLM read {len(told)} of {len(token_ids)} tokens: it took longer than rollout.request_timeout, or has aborted"
        )
    logprobs = [0.0, *(step[token].logprob for step, token in zip(told[1:], token_ids[1:], strict=True) if step)]
    completion = Completion(
        text="",
        token_ids=np.array(token_ids, np.int32),
        logprobs=np.array(logprobs, np.float32),
        finish_reason="length",
        policy_version=version,
    )
    return Response(index=index, completion=completion, prompt_token_ids=completion.token_ids)


def _token_versions(output: RequestOutput, first_version: int) -> np.ndarray:
    """[T] the version that sampled each token."""
    (sampled,) = output.outputs
    if output.lora_request is not None:
        return np.full(len(sampled.token_ids), int(output.lora_request.lora_name), np.int32)
    versions = np.full(len(sampled.token_ids), first_version, np.int32)
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = first_version if span.version == "default" else int(span.version)
    return versions


def split_experts(
    told: np.ndarray | None, num_prompt: int, num_tokens: int
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """The experts of prompt and response, out of what vLLM tells of both.

    Args:
        told: [P + T − 1, layers, top_k]: no forward pass has seen the last token.
        num_prompt: P.
        num_tokens: T.

    Returns:
        [P, layers, top_k] and [T, layers, top_k] int16, −1 for the last token; twice None if vLLM tells nothing.

    Raises:
        RuntimeError: If vLLM tells of another number of tokens.
    """
    if told is None:
        return None, None
    if len(told) != num_prompt + num_tokens - 1:
        raise RuntimeError(
            f"vLLM told the experts of {len(told)} tokens, expected {num_prompt} + {num_tokens} - 1: "
            "use learner.routing_replay R2"
        )
    whole = np.concatenate([told, np.full((1, *told.shape[1:]), -1)]).astype(np.int16)
    return whole[:num_prompt], whole[num_prompt:]
