"""Datasets become prompts lazily, and unreadable rows are named."""

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rollout.data.prompts import UnreadablePrompt, blind, column_mapping, prompts_from, readable
from rollout.rendering import render
from rollout.types import Prompt, Video
from tests.prompt_rows import TRUNCATED, image_row, png, prompts_with_bad_rows, text_prompt, text_prompts

# --- rows to prompts


def test_a_column_mapping_makes_one_user_turn_with_the_images_before_the_question():
    rows = [
        {
            "q": "left or right?",
            "pictures": [png("red"), png("blue")],
            "a": "left",
            "topic": "space",
            "level": 3,
            "key": 7,
        }
    ]
    [prompt] = prompts_from(
        rows, column_mapping(question="q", image="pictures", answer="a", id="key", task_column="topic")
    )
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "left or right?"}]
    assert prompt.messages == [{"role": "user", "content": parts}]
    assert [image.getpixel((0, 0)) for image in prompt.images] == [(255, 0, 0), (0, 0, 255)]
    assert (prompt.id, prompt.answer, prompt.task, prompt.columns) == ("7", "left", "space", {"level": 3})


def test_a_row_without_an_image_is_a_text_prompt_named_after_its_row():
    prompts = prompts_from([image_row(png()), image_row(None)], column_mapping(task="charts"))
    assert (prompts[1].id, prompts[1].images, prompts[1].task) == ("row-1", [], "charts")
    assert prompts[1].messages[0]["content"] == [{"type": "text", "text": "what?"}]


@pytest.mark.parametrize("form", ["pil", "path", "string", "bytes", "row with bytes", "row with path"])
def test_every_form_of_an_image_is_decoded_to_rgb(form, tmp_path):
    data = png(128, mode="L")
    path = tmp_path / "grey.png"
    path.write_bytes(data)
    image = {
        "pil": Image.open(path),
        "path": path,
        "string": str(path),
        "bytes": data,
        "row with bytes": {"bytes": data, "path": "elsewhere.png"},
        "row with path": {"bytes": None, "path": str(path)},
    }[form]
    [opened] = prompts_from([image_row(image)], column_mapping())[0].images
    assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (8, 4), (128, 128, 128))


def test_a_transparent_picture_is_laid_on_white():
    [prompt] = prompts_from([image_row(png((0, 0, 0, 0), mode="RGBA"))], column_mapping())
    assert prompt.images[0].getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_stored_on_its_side_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    [prompt] = prompts_from([image_row(png(size=(8, 4), exif=exif))], column_mapping())
    assert prompt.images[0].size == (4, 8)


def test_sixteen_bits_of_grey_keep_their_shades():
    # 0, half and all of 65,535: without scaling all above 255 would be white.
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert grey.mode == "I;16"
    [opened] = prompts_from([image_row(grey)], column_mapping())[0].images
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_of_unknown_range_is_refused(mode):
    with pytest.raises(UnreadablePrompt, match=f"image 0 cannot be read: ValueError: its mode is {mode}"):
        prompts_from([image_row(Image.new(mode, (4, 4)))], column_mapping())[0]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "human", "content": "hi"}, "role 'human': use one of system, user, assistant, tool"),
        ({"role": "user", "content": None}, "content is a NoneType"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "a text part holds a NoneType"),
        ({"content": "hi"}, "role None"),
    ],
)
def test_a_message_that_chat_templates_drop_or_misread_is_refused(message, told):
    with pytest.raises(UnreadablePrompt, match=told):
        prompts_from([Prompt(id="p", messages=[message])])[0]


def test_keys_that_a_dataset_fills_with_nothing_are_left_out():
    parts = [{"type": "text", "text": "hi", "image": None}]
    [prompt] = prompts_from([Prompt(id="p", messages=[{"role": "user", "content": parts}])])
    assert prompt.messages == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_images_may_stand_anywhere_between_the_words():
    parts = [
        {"type": "text", "text": "is "},
        {"type": "image"},
        {"type": "text", "text": " before "},
        {"type": "image"},
    ]

    def to_prompt(row):
        return Prompt(id="", messages=[{"role": "user", "content": parts}], images=row["pictures"])

    [prompt] = prompts_from([{"pictures": [png("red"), png("blue")]}], to_prompt)
    text = small_processor().tokenizer.decode(render(small_processor(), prompt))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>uis {picture} before {picture}<|im_end|><|im_start|>a"
    assert [image.getpixel((0, 0)) for image in prompt.images] == [(255, 0, 0), (0, 0, 255)]


def test_rows_are_read_when_they_are_drawn_and_slices_stay_lazy():
    rows_read = []

    def to_prompt(number):
        rows_read.append(number)
        return text_prompt(number)

    prompts = prompts_from(range(100), to_prompt)
    middle = prompts[40:60]
    assert rows_read == [0]  # the one row that construction tries
    assert (len(prompts), len(middle), middle[-1].id) == (100, 20, "59")
    assert rows_read == [0, 59]


def test_a_list_of_prompts_needs_no_mapping():
    prompts = text_prompts(3)
    assert [prompt.id for prompt in prompts_from(prompts)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "rows", [[{"query": "?", "image": None}], Dataset.from_dict({"query": ["?"], "image": [None]})]
)
def test_a_missing_column_is_told_at_construction_with_those_there_are(rows):
    with pytest.raises(ValueError, match=r"column 'question', but the dataset has 'query', 'image': name one of these"):
        prompts_from(rows, column_mapping())


def test_a_missing_column_is_told_though_the_first_row_is_damaged():
    rows = [{"image": TRUNCATED, "text": "?", "answer": ""}, {"image": png(), "text": "?", "answer": ""}]
    with pytest.raises(ValueError, match=r"'question'"):
        prompts_from(Dataset.from_list(rows).cast_column("image", ImageFeature()), column_mapping())


def test_a_key_error_of_the_users_own_is_not_taken_for_a_missing_column():
    with pytest.raises(ValueError, match="^to_prompt raised KeyError: 'question'$"):
        prompts_from([{"question": "?"}], lambda row: {}["question"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [], "test": []}, r"a mapping of 'train', 'test': choose one"),
        (
            Dataset.from_list([{"a": 1}]).to_iterable_dataset(),
            r"IterableDataset has no length, so it cannot be shuffled",
        ),
        ([{"question": "?"}], r"expected a Prompt, got a dict: pass a to_prompt"),
    ],
)
def test_what_is_no_sequence_of_prompts_is_refused_with_the_remedy(rows, message):
    with pytest.raises(ValueError, match=message):
        prompts_from(rows)


# --- unreadable rows


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (TRUNCATED, r"row 1: image 0 cannot be read: OSError: .*truncated"),
        ("/no/such/picture.png", r"row 1: image 0 cannot be read: FileNotFoundError: .*/no/such/picture.png"),
        (Image.new("RGB", (0, 5)), r"row 1: image 0 cannot be read: ValueError: it has 0 × 5 pixels"),
        (
            b"not a picture",
            r"row 1: image 0 cannot be read: ValueError: it is a file that begins with b'not a pi', not a picture",
        ),
        (3.5, r"row 1: image 0 cannot be read: ValueError: expected a PIL image, .* got float"),
    ],
)
def test_an_image_that_cannot_be_decoded_names_its_row_and_the_reason(image, reason):
    prompts = prompts_from([image_row(png()), image_row(image)], column_mapping())
    assert prompts[0].images[0].size == (8, 4)
    with pytest.raises(UnreadablePrompt, match=reason):
        prompts[1]


def test_an_image_that_datasets_cannot_decode_names_its_row_and_the_reason():
    images = [
        {"bytes": png(), "path": None},
        {"bytes": TRUNCATED, "path": None},
        {"bytes": None, "path": "/no/such/picture.png"},
    ]
    features = Features({"question": Value("string"), "image": ImageFeature(), "answer": Value("string")})
    dataset = Dataset.from_list([image_row(image) for image in images], features=features)
    prompts = prompts_from(dataset, column_mapping())
    with pytest.raises(UnreadablePrompt, match=r"row 1 cannot be read: OSError: .*truncated"):
        prompts[1]
    with pytest.raises(UnreadablePrompt, match=r"row 2 cannot be read: FileNotFoundError"):
        prompts[2]


def test_readable_keeps_the_order_and_leaves_out_what_cannot_be_used(caplog):
    prompts = prompts_with_bad_rows(5, bad={0, 3})
    usable = readable(prompts, accept=lambda prompt: "too long" if prompt.id == "2" else None)
    assert [prompt.id for prompt in usable] == ["1", "4"]
    messages = ["skipped row 0: torn page", "skipped prompt '2': too long", "skipped row 3: torn page"]
    assert [record.getMessage() for record in caplog.records] == messages


# --- the blind control


def test_blind_shows_grey_of_the_same_size_and_changes_nothing_else():
    [prompt] = prompts_from([image_row([png(size=(8, 4)), png(size=(3, 5))], level=2)], column_mapping())
    unseeing = blind(prompt)
    assert [image.size for image in unseeing.images] == [(8, 4), (3, 5)]
    assert all(image.getcolors() == [(image.width * image.height, (128, 128, 128))] for image in unseeing.images)
    assert prompt.images[0].getpixel((0, 0)) == (255, 0, 0)
    for name in ("id", "messages", "answer", "task", "columns"):
        assert getattr(unseeing, name) == getattr(prompt, name)


def test_a_blind_set_is_as_lazy_as_the_set_and_names_the_same_bad_rows():
    prompts = prompts_from([image_row(png()), image_row(TRUNCATED)], column_mapping())
    unseeing = prompts_from(prompts, blind)
    assert unseeing[0].images[0].getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(UnreadablePrompt, match=r"^row 1: image 0 cannot be read"):
        unseeing[1]


def test_blind_shows_grey_frames_at_the_same_times():
    video = Video(frames=np.zeros((3, 4, 6, 3), np.uint8), fps=7.5, frame_indices=(0, 4, 9))
    [unseeing] = blind(Prompt(id="v", messages=[], videos=[video])).videos
    assert unseeing.frames.shape == (3, 4, 6, 3) and unseeing.frames.dtype == np.uint8
    assert (unseeing.frames == 128).all() and not video.frames.any()
    assert (unseeing.fps, unseeing.frame_indices) == (7.5, (0, 4, 9))
