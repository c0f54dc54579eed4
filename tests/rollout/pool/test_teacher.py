"""A teacher's log-probabilities against the learner's own forward pass of the teacher's weights, fp32, every modality: the same
tokens, the same temperature, the same bans."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.loading import load_processor, vision_token_ids
from policies.small.qwen3_vl import TOKEN_IDS, save_small_policy, small_processor
from rewards import Score
from rl.config import LearnerConfig, TrainConfig
from rl.learner import Learner
from rl.samples import make_samples
from rollout.engine.teacher_worker import as_sampled
from rollout.pool.teacher import Teacher, require_same_reading
from rollout.rendering import collapse_images, expand_media, expanded_prompt, limit_pixels, observation_tokens
from rollout.types import Completion, Group, Observation, Prompt, Turn
from tests.modalities import CONFIG, PROMPTS, picture

# Prompts of up to 90 tokens, read 48 at once: all but the shortest are read in pieces.
READS = replace(
    CONFIG,
    temperature=0.7,
    max_model_len=CONFIG.max_model_len + 1,
    max_batched_tokens=48,
    max_running=16,
    engine_timeout=20.0,
)
PROCESSOR = limit_pixels(small_processor(), READS)
RNG = np.random.default_rng(0)


def words(count: int) -> np.ndarray:
    """What a student may have said: any bytes."""
    return RNG.integers(0, 256, count).astype(np.int32)


def answered(prompt: Prompt, lengths: Sequence[int]) -> Group:
    """A group of answers of so many tokens, as an engine would hand it on."""
    said = [Completion(text="", token_ids=words(n), logprobs=np.zeros(n, np.float32)) for n in lengths]
    return Group(prompt=prompt, prompt_token_ids=expanded_prompt(PROCESSOR, prompt), completions=said)


def episode(prompt: Prompt) -> Group:
    """Two turns, between them two pictures and words that no policy has said."""
    shown = Observation(text="look", images=[picture(64, 96), picture(96, 64)])
    between = expand_media(PROCESSOR, observation_tokens(PROCESSOR, shown), shown.images, ())
    first, last = words(5), words(3)
    stop = 5 + len(between)
    turns = [Turn(text="", start=0, stop=5, observation=shown), Turn(text="", start=stop, stop=stop + 3)]
    tokens = np.concatenate([first, between, last]).astype(np.int32)
    completion = Completion(text="", token_ids=tokens, logprobs=np.zeros(len(tokens), np.float32), turns=turns)
    could_not_begin = Completion(text="", turns=[], error="reset raised")
    return Group(
        prompt=prompt,
        prompt_token_ids=expanded_prompt(PROCESSOR, prompt),
        completions=[completion, could_not_begin],
    )


@pytest.fixture(scope="module")
def teacher(dense_policy: Path, tmp_path_factory) -> Path:
    """Another policy than the student, whose chat template says something of its own in front of each answer."""
    folder = save_small_policy(tmp_path_factory.mktemp("teacher") / "dense", kind="dense", seed=7)
    template = next(path for path in folder.iterdir() if "chat_template" in path.name)
    template.write_text(template.read_text().replace("<|im_start|>a", "<|im_start|>a<think>"))
    assert "<think>" in json.dumps(load_processor(folder).chat_template)
    return folder


@pytest.fixture(scope="module")
def served(cluster: None, teacher: Path, dense_policy: Path) -> Iterator[Teacher]:
    """The teacher on an engine of Ray's; the tests come in order and share it, and the last one kills it."""
    banned = vision_token_ids(load_processor(dense_policy))
    served = Teacher(teacher, dense_policy, READS, processor=PROCESSOR, banned_ids=banned)
    yield served
    served.close()


def readings(served: Teacher, groups: Sequence[Group]) -> list[list[np.ndarray]]:
    """What it has to say to all groups, asked at once."""
    return [future.result(timeout=400) for future in [served.submit(group) for group in groups]]


@pytest.mark.engine
def test_a_teachers_logprobs_are_those_of_the_learners_own_forward_pass_of_its_weights(served, teacher):
    longest = CONFIG.max_model_len - len(expanded_prompt(PROCESSOR, PROMPTS[1]))
    groups = [answered(prompt, (1, 12, longest) if prompt is PROMPTS[1] else (1, 12)) for prompt in PROMPTS]
    check_readings(served, teacher, [*groups, episode(PROMPTS[1]), episode(PROMPTS[0])])


def check_readings(served: Teacher, teacher: Path, groups: Sequence[Group]) -> None:
    """Each token has the learner's log-probability, whatever is read at the same time. The last group is an `episode`."""
    told = readings(served, groups)
    assert told[-1][1].shape == (0,)

    config = TrainConfig(model=str(teacher), rollout=READS, learner=LearnerConfig(dtype="float32", threads=1))
    learner = Learner(config, teacher)
    scores = [[Score(reward=0.0, error=completion.error) for completion in group.completions] for group in groups]
    for samples in make_samples(groups, scores, teacher_logprobs=told):
        batches = learner.make_microbatches(samples)
        for batch, logprobs_BT in zip(batches, learner.old_logprobs(batches), strict=True):
            gap_BT = (batch.teacher_logprobs_BT - logprobs_BT).abs()
            assert gap_BT[batch.mask_BT].max() <= 1e-5, samples[0].prompt_id
            assert not batch.teacher_logprobs_BT[~batch.mask_BT].any()

    assert_equal(readings(served, groups[::-1])[::-1], told)


def assert_equal(ours: Sequence[Sequence[np.ndarray]], theirs: Sequence[Sequence[np.ndarray]]) -> None:
    """To the last bit, whatever was read at the same time: a run that resumes depends on it."""
    for mine, other in zip(ours, theirs, strict=True):
        assert [logprobs.tolist() for logprobs in mine] == [logprobs.tolist() for logprobs in other]


@pytest.mark.engine
def test_a_teacher_that_reads_other_tokens_than_the_student_is_refused(served):
    group = answered(PROMPTS[0], (3,))
    other = replace(group, prompt_token_ids=group.prompt_token_ids[1:])
    with pytest.raises(RuntimeError, match=r"^the teacher: prompt 'text': from token 0 on the teacher read \[257, "):
        readings(served, [other])


def test_tokens_that_differ_are_named_by_their_place():
    group = answered(PROMPTS[0], (3,))
    ours = np.concatenate([group.prompt_token_ids, group.completions[0].token_ids])
    require_same_reading(group, group.completions[0], ours)
    place = len(ours) - 1
    told = re.escape(
        f"from token {place} on the teacher read [] and the student [{ours[-1]}] ({place} and {place + 1} tokens"
    )
    with pytest.raises(RuntimeError, match=told):
        require_same_reading(group, group.completions[0], ours[:-1])


def test_of_each_observed_picture_one_placeholder_is_left():
    start, image, end = (TOKEN_IDS[f"<|{name}|>"] for name in ("vision_start", "image_pad", "vision_end"))
    expanded = np.array([65, start, image, image, image, end, start, image, end, 66, image])
    assert collapse_images(PROCESSOR, expanded).tolist() == [65, start, image, end, start, image, end, 66, image]
    assert collapse_images(PROCESSOR, np.zeros(0, np.int32)).tolist() == []


def test_logits_are_divided_by_the_temperature_and_normalised_without_the_banned_tokens():
    compute = as_sampled(lambda hidden: torch.tensor([[2.0, 4.0, 100.0]]), [2], 2.0)
    # (1, 2) without the third: log p = 1 − log(e + e²)
    assert compute(None).log_softmax(-1)[0, :2].tolist() == pytest.approx([-1.313262, -0.313262], abs=1e-6)
    assert as_sampled(lambda hidden: None, [2], 2.0)(None) is None


@pytest.mark.engine
def test_a_teacher_whose_engine_dies_reads_on_with_another_and_says_the_same(served: Teacher):
    groups = [answered(prompt, (1, 12)) for prompt in PROMPTS]
    told = [readings(served, [group])[0] for group in groups]
    [engine] = served._pool.engines
    for pid, _ in engine.processes.processes:
        os.kill(pid, signal.SIGKILL)
    again = readings(served, groups)
    assert served.metrics()["rollout/teacher_failures"] >= 1
    assert_equal(again, told)
