"""vLLM's outputs as responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rollout.types import Completion, Response, expert_dtype, unknown_expert

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


def as_response(
    index: int,
    output: RequestOutput,
    *,
    asked_version: int,
    first_version: int,
    num_experts: int,
    thinking: bool = False,
) -> Response:
    """Converts vLLM's output of a request with one completion.

    Args:
        index: Index of its seed in the group.
        output: vLLM's finished output.
        asked_version: Version of the weights at the request, for a completion without tokens.
        first_version: Version of the weights that vLLM started with, which it calls "default".
        num_experts: Experts of a layer; 0 in a dense model.
        thinking: As in `Completion`.
    """
    (sampled,) = output.outputs
    token_ids = np.array(sampled.token_ids, np.int32)
    logprobs = [step[token].logprob for step, token in zip(sampled.logprobs or [], sampled.token_ids, strict=True)]
    versions = _token_versions(output, first_version)
    first = int(versions[0]) if len(versions) else asked_version
    prompt_experts, experts = split_experts(sampled.routed_experts, len(output.prompt_token_ids), versions, num_experts)
    completion = Completion(
        text=sampled.text,
        token_ids=token_ids,
        logprobs=np.array(logprobs, np.float32),
        finish_reason="stop" if sampled.finish_reason == "stop" else "length",
        policy_version=first,
        token_versions=versions if (versions != first).any() else None,
        routed_experts=experts,
        thinking=thinking,
    )
    return Response(
        index=index,
        completion=completion,
        prompt_token_ids=np.array(output.prompt_token_ids, np.int32),
        prompt_routed_experts=prompt_experts,
    )


def as_prompt_logprobs(index: int, output: RequestOutput, *, version: int) -> Response:
    """Converts vLLM's output of a scored request: the log-probability of each token given the tokens before it.

    Args:
        index: As in `as_response`.
        output: vLLM's finished output, with the log-probabilities of its prompt.
        version: Version of the weights.

    Raises:
        RuntimeError: If some tokens have none.
    """
    token_ids, prompt_logprobs = output.prompt_token_ids, output.prompt_logprobs or []
    if len(prompt_logprobs) != len(token_ids):
        raise RuntimeError(
            f"vLLM scored {len(prompt_logprobs)} of {len(token_ids)} tokens: it took longer than rollout.request_timeout, "
            "or the request was aborted"
        )
    steps = zip(prompt_logprobs[1:], token_ids[1:], strict=True)
    logprobs = [0.0, *(step[token].logprob for step, token in steps if step)]
    completion = Completion(
        text="",
        token_ids=np.array(token_ids, np.int32),
        logprobs=np.array(logprobs, np.float32),
        finish_reason="length",
        policy_version=version,
    )
    return Response(index=index, completion=completion, prompt_token_ids=completion.token_ids)


def _token_versions(output: RequestOutput, first_version: int) -> np.ndarray:
    """Returns [T], the version that sampled each token."""
    (sampled,) = output.outputs
    if output.lora_request is not None:
        return np.full(len(sampled.token_ids), int(output.lora_request.lora_name), np.int32)
    versions = np.full(len(sampled.token_ids), first_version, np.int32)
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = first_version if span.version == "default" else int(span.version)
    return versions


def split_experts(
    routed: np.ndarray | None, num_prompt: int, versions: np.ndarray, num_experts: int
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Splits the experts of a sequence into those of the prompt and those of the response.

    After a weight sync in the middle of a response vLLM computes all tokens before it again. It does not return the experts that
    the new weights choose for them.

    Args:
        routed: [P + T − 1, layers, top_k]: no forward pass has the last token as input.
        num_prompt: P.
        versions: [T], the version that sampled each token.
        num_experts: Experts of a layer.

    Returns:
        [P, layers, top_k] and [T, layers, top_k], unknown for the last token and for all that a sync has had computed again; two
        None if vLLM returned none.

    Raises:
        RuntimeError: If vLLM returned the experts of another number of tokens.
    """
    if routed is None:
        return None, None
    if len(routed) != num_prompt + len(versions) - 1:
        raise RuntimeError(
            f"vLLM returned the experts of {len(routed)} tokens, expected {num_prompt} + {len(versions)} - 1: "
            "use learner.routing_replay R2"
        )
    dtype = expert_dtype(num_experts)
    unknown = unknown_expert(dtype.itemsize)
    whole = np.full((len(routed) + 1, *routed.shape[1:]), unknown, dtype)
    whole[:-1] = routed
    if len(versions) and (is_recomputed := versions < versions.max()).any():
        whole[: num_prompt + int(is_recomputed.sum())] = unknown
    return whole[:num_prompt], whole[num_prompt:]
