"""Sums of handwritten digits: the handwriting is real, held-out digits stay unseen, equal seeds give equal prompts."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

import rollout.tasks.digit_sums as tasks
from rollout.data.prompts import prompts_from
from rollout.data.stream import PromptStream
from rollout.tasks.digit_sums import digit_ids_of, digit_sums, to_prompt


def test_a_row_shows_the_digits_that_its_answer_adds_up():
    row = digit_sums("train", num_prompts=1, seed=0)[0]
    assert (row["digits"], row["sum"], row["answer"]) == ([8, 6, 5], 19, "8+6+5=19")
    assert (row["image"].mode, row["image"].size) == ("RGB", (192, 64))
    handwriting = load_digits()
    assert handwriting.target[row["digit_ids"]].tolist() == [8, 6, 5]
    # One pixel of each 8x8 block gives the original back: 16 grey levels, stretched to 255.
    shown = np.asarray(row["image"])[::8, ::8, 0]
    original = np.concatenate(handwriting.images[row["digit_ids"]], axis=1)
    assert np.array_equal(shown, np.round(original * 255 / 16))


def test_1400_digits_are_for_training_and_397_others_are_held_out():
    train, test = set(digit_ids_of("train").tolist()), set(digit_ids_of("test").tolist())
    assert (len(train), len(test), len(train | test)) == (1400, 397, 1797)
    held_out_per_digit = np.bincount(load_digits().target[sorted(test)])
    assert set(held_out_per_digit.tolist()) <= {39, 40, 41}


@pytest.mark.parametrize("seed", [0, 1])
def test_no_training_prompt_under_any_seed_shows_a_held_out_digit(seed):
    seen = {
        split: set(np.ravel(digit_sums(split, seed=seed).with_format(None)["digit_ids"][:]).tolist())
        for split in ("train", "test")
    }
    assert len(seen["train"]) == 1400  # 60,000 draws leave none out
    assert len(seen["test"]) == 397
    assert not seen["train"] & seen["test"]


def test_equal_seeds_give_equal_prompts_in_another_process_and_other_seeds_give_others():
    program = (
        "from rollout.tasks.digit_sums import digit_sums; print(*digit_sums('test', num_prompts=4, seed=0)['answer'])"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert elsewhere == ["5+8+9=22", "5+3+7=15", "2+9+8=19", "0+0+2=2"]
    assert digit_sums("test", num_prompts=4, seed=0)["answer"][:] == elsewhere
    assert digit_sums("test", num_prompts=4, seed=1)["answer"][:] != elsewhere


def test_guessing_without_looking_is_right_in_less_than_8_percent():
    _, counts = np.unique(digit_sums("test").with_format(None)["sum"][:], return_counts=True)
    assert counts.max() / counts.sum() < 0.08


def test_a_prompt_has_one_picture_a_short_question_and_the_task():
    prompt = prompts_from(digit_sums("test", num_digits=2, num_prompts=3, seed=0), to_prompt)[1]
    assert prompt.id == "digit_sums-test-1"
    assert prompt.messages == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sum?"}]}]
    assert [image.size for image in prompt.images] == [(128, 64)]
    assert prompt.task == "digit_sums"
    assert prompt.answer == "{}+{}={}".format(*prompt.columns["digits"], prompt.columns["sum"])


def test_of_twenty_thousand_prompts_only_those_near_the_drawn_ones_get_pictures(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    def draw(batch: dict[str, list]) -> dict[str, list]:
        drawn.append(len(batch["digit_ids"]))
        return draw_images(batch)

    draw_images = tasks._draw_images
    monkeypatch.setattr(tasks, "_draw_images", draw)
    prompts = prompts_from(digit_sums("train"), to_prompt)
    assert len(prompts) == 20_000
    assert len(PromptStream(prompts, batch_size=16, seed=0).next_batch()) == 16
    assert 16 <= sum(drawn) <= 64  # a batch, and what the stream opens ahead


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, r"split must be 'train' or 'test', got 'validation'"),
        ({"split": "train", "num_digits": 0}, r"must be >= 1, got 0 and 20000"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        digit_sums(**options)
