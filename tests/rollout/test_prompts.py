"""Datasets become prompts lazily; the stream is endless, shuffled, exact to resume, and survives unreadable rows."""

import io
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from policies.small.qwen3_vl import small_processor
from rollout.data.media import FrameSampling
from rollout.data.prompts import Prompts, UnreadablePrompt, blind, column_mapping, prompts_from, readable
from rollout.data.stream import PromptStream
from rollout.rendering import render
from rollout.types import Prompt, Video


def png(color="red", size=(8, 4), mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG", **options)
    return file.getvalue()


TRUNCATED = png(size=(64, 64))[:90]


def text_prompt(number):
    return Prompt(id=str(number), messages=[{"role": "user", "content": f"question {number}"}])


def text_prompts(count):
    return [text_prompt(number) for number in range(count)]


def prompts_with_bad_rows(count, bad):
    def to_prompt(number):
        if number in bad:
            raise UnreadablePrompt("torn page")
        return text_prompt(number)

    return prompts_from(range(count), to_prompt)


def image_row(image, **columns):
    return {"question": "what?", "image": image, "answer": "a", **columns}


def drawn(stream, batches):
    return [[int(prompt.id) for prompt in stream.next_batch()] for _ in range(batches)]


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
    with pytest.raises(KeyError):
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
        (b"not a picture", r"row 1: image 0 cannot be read: UnidentifiedImageError"),
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


def test_unreadable_prompts_are_replaced_by_the_next_counted_and_logged_once(caplog):
    rows = [
        image_row(image, id=name)
        for name, image in (("a", png()), ("b", TRUNCATED), ("c", "/missing.png"), ("d", png()))
    ]
    stream = PromptStream(prompts_from(rows, column_mapping(id="id")), batch_size=2, seed=0)
    # The epochs of seed 0 are c a b d | d a c b | c b a d.
    batches = [[prompt.id for prompt in stream.next_batch()] for _ in range(3)]
    assert batches == [["a", "d"], ["d", "a"], ["a", "d"]]
    assert stream.skipped == 6
    assert [record.getMessage()[:13] for record in caplog.records] == ["skipped row 2", "skipped row 1"]


def test_a_refused_prompt_is_replaced_and_named_with_the_reason(caplog):
    stream = PromptStream(
        text_prompts(3), batch_size=2, seed=0, accept=lambda prompt: "too long" if prompt.id == "1" else None
    )
    assert [sorted(batch) for batch in drawn(stream, 3)] == [[0, 2], [0, 2], [0, 2]]
    assert stream.skipped >= 2
    assert [record.getMessage() for record in caplog.records] == ["skipped prompt '1': too long"]


def test_a_dataset_without_a_single_usable_prompt_says_so_with_the_last_reason():
    stream = PromptStream(text_prompts(3), batch_size=2, seed=0, accept=lambda prompt: "9 tokens, the context holds 8")
    with pytest.raises(ValueError, match=r"none of the 3 prompts can be used; the last one: prompt '\d': 9 tokens"):
        stream.next_batch()


def test_readable_keeps_the_order_and_leaves_out_what_cannot_be_used(caplog):
    prompts = prompts_with_bad_rows(5, bad={0, 3})
    usable = readable(prompts, accept=lambda prompt: "too long" if prompt.id == "2" else None)
    assert [prompt.id for prompt in usable] == ["1", "4"]
    messages = ["skipped row 0: torn page", "skipped prompt '2': too long", "skipped row 3: torn page"]
    assert [record.getMessage() for record in caplog.records] == messages


# --- the stream

streams = st.fixed_dictionaries(
    {
        "count": st.integers(1, 20),
        "batch_size": st.integers(1, 12),
        "seed": st.integers(0, 3),
        "bad": st.sets(st.integers(1, 19)),
    }
)


def make_stream(count, batch_size, seed, bad):
    return PromptStream(prompts_with_bad_rows(count, bad), batch_size=batch_size, seed=seed)


@settings(deadline=None)
@given(options=streams, before=st.integers(0, 10), after=st.integers(1, 10))
def test_a_stream_restored_at_any_point_goes_on_as_if_uninterrupted(options, before, after):
    uninterrupted, resumed = make_stream(**options), make_stream(**options)
    drawn(uninterrupted, before)
    drawn(resumed, 2)  # a stream that has been used restores as well as a new one
    resumed.restore(json.loads(json.dumps(uninterrupted.state())))
    assert drawn(resumed, after) == drawn(uninterrupted, after)
    assert resumed.state() == uninterrupted.state()


@settings(deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_epoch_visits_each_prompt_once(count, seed):
    order = [index for [index] in drawn(make_stream(count, 1, seed, set()), 3 * count)]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(options=streams, batches=st.integers(1, 12))
def test_no_prompt_is_lost_or_drawn_too_often_across_epochs(options, batches):
    stream = make_stream(**options)
    times = Counter(index for batch in drawn(stream, batches) for index in batch)
    state = stream.state()
    times.update(state["postponed"])
    good = set(range(options["count"])) - options["bad"]
    assert {times[index] for index in good} <= {state["epoch"], state["epoch"] + 1}
    assert sum(times.values()) + state["skipped"] == state["epoch"] * options["count"] + state["position"]


@settings(deadline=None)
@given(options=streams)
def test_no_batch_has_a_prompt_twice_while_there_are_enough(options):
    enough = options["count"] - len(options["bad"] & set(range(options["count"]))) >= options["batch_size"]
    for batch in drawn(make_stream(**options), 12):
        assert len(set(batch)) == len(batch) or not enough


def test_the_next_batch_is_opened_while_this_one_is_at_work():
    opened: list[int] = []

    def to_prompt(row):
        opened.append(row)
        return text_prompt(row)

    prompts = prompts_from(range(12), to_prompt)  # opens the first row, to see that it can
    opened.clear()
    stream = PromptStream(prompts, batch_size=4, seed=0)
    first = [int(prompt.id) for prompt in stream.next_batch()]
    wait_until(lambda: len(opened) == 8)
    assert opened[:4] == first
    ahead = set(opened[4:])
    assert {int(prompt.id) for prompt in stream.next_batch()} == ahead
    wait_until(lambda: len(opened) == 12)
    stream.next_batch()
    assert sorted(opened[:12]) == list(range(12)), "each row is opened once"


def test_prompts_that_share_an_image_that_is_not_yet_decoded_may_be_opened_at_once(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shared.png")
    shared = Image.open(tmp_path / "shared.png")
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    rows = [Prompt(id=str(i), messages=[{"role": "user", "content": content}], images=[shared]) for i in range(32)]
    with ThreadPoolExecutor(8) as threads:
        for prompt in threads.map(Prompts(rows, lambda row: row, range(32), FrameSampling()).__getitem__, range(32)):
            assert np.array_equal(np.asarray(prompt.images[0]), pixels)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def test_the_order_is_the_same_on_every_machine():
    assert drawn(PromptStream(text_prompts(5), batch_size=5, seed=0), 2) == [[2, 4, 3, 0, 1], [1, 4, 3, 0, 2]]


def test_a_prompt_that_the_next_epoch_brings_too_early_waits_for_the_next_batch():
    # The epochs are 2 4 3 0 1 | 1 4 3 0 2 | 4 2 1 0 3. The second batch begins with the last 1; the next 1 waits.
    stream = PromptStream(text_prompts(5), batch_size=4, seed=0)
    assert drawn(stream, 2) == [[2, 4, 3, 0], [1, 4, 3, 0]]
    assert stream.state()["postponed"] == [1]
    assert drawn(stream, 1) == [[1, 2, 4, 0]]
    assert stream.state()["postponed"] == [2, 1]


def test_a_small_dataset_fills_a_large_batch_by_repeating():
    [batch] = drawn(PromptStream(text_prompts(2), batch_size=7, seed=0), 1)
    assert len(batch) == 7
    assert set(batch) == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": text_prompts(9)}, r"num_prompts 10, this run has 9: resume with the dataset and seed"),
        ({"seed": 1}, r"seed 0, this run has 1: resume with the dataset and seed"),
    ],
)
def test_a_state_of_another_dataset_or_seed_is_refused(change, message):
    options = {"prompts": text_prompts(10), "batch_size": 4, "seed": 0}
    state = PromptStream(**options).state()
    with pytest.raises(ValueError, match=message):
        PromptStream(**{**options, **change}).restore(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, r"0 prompts: check its split and its filters"),
        ({"batch_size": 0}, r"batch_size must be >= 1, got 0"),
        ({"seed": -1}, r"seed must be >= 0, got -1"),
    ],
)
def test_a_stream_of_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PromptStream(**{"prompts": text_prompts(10), "batch_size": 4, "seed": 0, **change})


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
