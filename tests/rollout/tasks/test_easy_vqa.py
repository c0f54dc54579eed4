"""easy-VQA: the numbers of questions, test pictures unseen in training, and texts that give nothing away."""

from collections import Counter, defaultdict
from functools import cache

import pytest

from rollout.data.prompts import prompts_from
from rollout.tasks import easy_vqa as source
from rollout.tasks.easy_vqa import is_negated, to_prompt

COUNTS = {
    ("train", "color_and_shape"): 10_168,
    ("test", "color_and_shape"): 2_537,
    ("train", "yes_no_balanced"): 10_280,
    ("test", "yes_no_balanced"): 2_480,
    ("train", "mixed"): 20_448,
    ("test", "mixed"): 5_017,
}


@cache
def easy_vqa(split, questions):
    return source.easy_vqa(split, questions=questions)


def text_rule_accuracy(pairs):
    """The score of the best rule that reads the question only: each wording gets its commonest answer."""
    answers = defaultdict(Counter)
    for question, answer in pairs:
        answers[question][answer] += 1
    return sum(max(count.values()) for count in answers.values()) / len(pairs)


def questions_and_answers(dataset):
    return list(zip(dataset["question"], dataset["answer"], strict=True))


@pytest.mark.parametrize(("split", "questions"), COUNTS)
def test_each_set_has_its_number_of_questions_none_twice(split, questions):
    dataset = easy_vqa(split, questions)
    assert len(dataset) == COUNTS[split, questions]
    assert len(set(dataset["id"])) == len(dataset)


def test_kinds_are_color_shape_and_yes_no():
    assert Counter(easy_vqa("test", "mixed")["kind"]) == {"color": 1_280, "shape": 1_257, "yes_no": 2_480}
    assert set(easy_vqa("test", "color_and_shape")["kind"]) == {"color", "shape"}
    assert set(easy_vqa("test", "yes_no_balanced")["answer"]) == {"yes", "no"}


def test_the_package_itself_is_answered_without_looking():
    texts, answers, _ = source.package.get_test_questions()
    yes_no = [(text, answer) for text, answer in zip(texts, answers, strict=True) if answer in ("yes", "no")]
    right = sum((answer == "yes") == is_negated(text) for text, answer in yes_no)
    assert right / len(yes_no) == pytest.approx(5_890 / 7_136)  # 82.5 %


@pytest.mark.parametrize("split", ["train", "test"])
def test_in_the_balanced_set_no_rule_over_the_text_beats_one_half(split):
    pairs = questions_and_answers(easy_vqa(split, "yes_no_balanced"))
    right = sum((answer == "yes") == is_negated(text) for text, answer in pairs)
    assert right * 2 == len(pairs)
    assert text_rule_accuracy(pairs) == 0.5
    negated = sum(is_negated(text) for text, _ in pairs)
    assert negated * 2 == len(pairs)


def test_colour_and_shape_questions_are_near_chance_without_looking():
    # Half of them have 8 answers and half have 3: (1/8 + 1/3) / 2 = 0.23.
    assert text_rule_accuracy(questions_and_answers(easy_vqa("train", "color_and_shape"))) < 0.25


def test_pictures_of_the_test_split_are_not_in_the_training_split():
    def pictures(split):
        dataset = easy_vqa(split, "mixed")
        row_of_picture = {image_id: row for row, image_id in enumerate(dataset["image_id"])}
        return {dataset[row]["image"].convert("RGB").tobytes() for row in row_of_picture.values()}

    train, test = pictures("train"), pictures("test")
    assert (len(train), len(test)) == (3_988, 998)  # of 4,000 and 1,000: fourteen have no question left
    assert not train & test


def test_a_prompt_asks_about_its_picture_in_the_packages_words():
    dataset = easy_vqa("test", "mixed")
    row = dataset[0]
    prompt = prompts_from(dataset, to_prompt)[0]
    assert prompt.messages == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
    ]
    assert (prompt.id, prompt.answer, prompt.task) == (row["id"], row["answer"], row["kind"])
    assert [(image.mode, image.size) for image in prompt.images] == [("RGB", (64, 64))]
    assert prompt.columns == {"image_id": row["image_id"]}


def test_the_rows_are_the_same_every_time_and_the_first_of_them_are_a_fair_sample():
    again = source.easy_vqa("test")
    assert again["id"][:] == easy_vqa("test", "mixed")["id"][:]
    assert len(set(again["image_id"][:256])) > 200  # the package lists all questions of a picture together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, r"split must be 'train' or 'test', got 'validation'"),
        (
            {"split": "test", "questions": "all"},
            r"questions must be 'color_and_shape', 'yes_no_balanced' or 'mixed', got 'all'",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        source.easy_vqa(**options)
