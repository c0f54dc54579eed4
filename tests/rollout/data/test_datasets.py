"""Rows from files, folders and the hub; paths lead from the data's folder, wherever the process runs."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from rollout.data.datasets import read_rows
from rollout.data.prompts import column_mapping, prompts_from

ROWS = [{"question": "what?", "answer": "red"}, {"question": "where?", "answer": "there"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of the files is kept for the test alone; and it is run from another folder than the data's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4), color).save(file, "PNG")
    return file.getvalue()


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_images(folder: Path, **colors: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, color in colors.items():
        (folder / f"{name}.png").write_bytes(png(color))


def write_parquet(path: Path, columns: dict[str, list], features: Features | None = None) -> Path:
    """As the hub has it: images are structs of bytes and path, and the schema says that they are images."""
    table = pa.table(columns)
    if features is not None:
        told = json.dumps({"info": {"features": features.to_dict()}})
        table = table.replace_schema_metadata({"huggingface": told})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def color_of(prompt) -> list:
    return [image.getpixel((0, 0)) for image in prompt.images]


RED, BLUE = (255, 0, 0), (0, 0, 255)

# --- files


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_is_read_to_the_same_rows(suffix: str, tmp_path: Path):
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, ROWS)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".csv":
        path.write_text("question,answer\nwhat?,red\nwhere?,there\n")
    else:
        write_parquet(path, {"question": ["what?", "where?"], "answer": ["red", "there"]})
    assert list(read_rows(path)) == ROWS
    assert read_rows(path)[1]["answer"] == "there"
    assert read_rows(path).cache_files, "memory-mapped"


def test_embedded_images_are_decoded(tmp_path: Path):
    features = Features(image=ImageFeature(), images=List(ImageFeature()), question=Value("string"))
    one, two = ({"bytes": png(color), "path": f"{color}.png"} for color in ("red", "blue"))
    columns = {"image": [one], "images": [[one, two]], "question": ["?"]}
    path = write_parquet(tmp_path / "train.parquet", columns, features)
    [single] = prompts_from(read_rows(path), column_mapping(answer=None))
    [several] = prompts_from(read_rows(path), column_mapping(image="images", answer=None))
    assert (color_of(single), color_of(several)) == ([RED], [RED, BLUE])


def test_bytes_that_nothing_says_are_images_are_decoded(tmp_path: Path):
    columns = {"image": [{"bytes": png("blue"), "path": None}], "raw": [png("red")], "question": ["?"]}
    rows = read_rows(write_parquet(tmp_path / "train.parquet", columns))
    assert color_of(prompts_from(rows, column_mapping(answer=None))[0]) == [BLUE]
    assert color_of(prompts_from(rows, column_mapping(image="raw", answer=None))[0]) == [RED]


def test_paths_lead_from_the_files_folder_and_not_from_where_the_process_runs(tmp_path: Path):
    write_images(tmp_path / "data" / "pictures", a="red", b="blue")
    rows = [
        {"image": "pictures/a.png", "question": "?", "answer": "x.png is what it says"},
        {"image": None, "question": "no picture", "answer": ""},
        {"image": str(tmp_path / "data" / "pictures" / "b.png"), "question": "absolute", "answer": ""},
    ]
    read = read_rows(write_jsonl(tmp_path / "data" / "train.jsonl", rows))
    prompts = prompts_from(read, column_mapping())
    assert [color_of(prompt) for prompt in prompts] == [[RED], [], [BLUE]]
    assert [prompt.answer for prompt in prompts] == ["x.png is what it says", "", ""]
    assert color_of(prompts_from(read.select([2, 0]), column_mapping())[1]) == [RED], "a selection keeps them"


def test_lists_of_paths_and_paths_of_structs_lead_from_there_too(tmp_path: Path):
    write_images(tmp_path / "data", a="red", b="blue")
    rows = [{"images": ["a.png", "b.png"], "image": {"path": "b.png"}, "question": "?"}]
    read = read_rows(write_jsonl(tmp_path / "data" / "train.jsonl", rows))
    assert color_of(prompts_from(read, column_mapping(image="images", answer=None))[0]) == [RED, BLUE]
    assert color_of(prompts_from(read, column_mapping(answer=None))[0]) == [BLUE]


def test_images_of_which_parquet_has_the_path_alone_lead_from_there(tmp_path: Path):
    write_images(tmp_path / "data", a="red")
    features = Features(image=ImageFeature(), images=List(ImageFeature()), question=Value("string"))
    by_path, embedded = {"bytes": None, "path": "a.png"}, {"bytes": png("blue"), "path": "b.png"}
    columns = {"image": [by_path, embedded], "images": [[by_path], [embedded]], "question": ["?", "!"]}
    read = read_rows(write_parquet(tmp_path / "data" / "train.parquet", columns, features))
    assert [color_of(p) for p in prompts_from(read, column_mapping(answer=None))] == [[RED], [BLUE]]
    assert [color_of(p) for p in prompts_from(read, column_mapping(image="images", answer=None))] == [[RED], [BLUE]]


def test_a_name_of_a_file_that_is_not_there_stays_a_text(tmp_path: Path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"image": "images/1.jpg", "question": "?", "answer": "a.png"}])
    assert read_rows(path)[0] == {"image": "images/1.jpg", "question": "?", "answer": "a.png"}


def test_rows_need_not_have_the_same_columns(tmp_path: Path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": "?"}, {"question": "!", "level": [1]}])
    assert list(read_rows(path)) == [{"question": "?", "level": None}, {"question": "!", "level": [1]}]


def test_cells_of_a_table_are_the_texts_that_are_written(tmp_path: Path):
    (tmp_path / "data.csv").write_text("a,b,c\n17,007,true\n,None,N/A\n")
    assert list(read_rows(tmp_path / "data.csv")) == [
        {"a": "17", "b": "007", "c": "true"},
        {"a": "", "b": "None", "c": "N/A"},
    ]
    (tmp_path / "data.tsv").write_text("a\tb\n1,5\t2\n")
    assert list(read_rows(tmp_path / "data.tsv")) == [{"a": "1,5", "b": "2"}]


def test_values_of_json_arrive_as_they_are_written(tmp_path: Path):
    rows = [
        {"answer": "2020-01-01", "number": 10**30, "options": {"A": "cat"}, "mixed": "x"},
        {"answer": "\ud800", "number": 1.5, "options": {"B": "dog", "C": None}, "mixed": ["x", 1]},
    ]
    assert list(read_rows(write_jsonl(tmp_path / "d.jsonl", rows))) == rows
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert list(read_rows(tmp_path / "d.json")) == rows


def test_a_compressed_file_is_read(tmp_path: Path):
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS))
    assert list(read_rows(tmp_path / "train.jsonl.gz")) == ROWS
    write_jsonl(tmp_path / "test.jsonl", ROWS[:1])
    assert list(read_rows(tmp_path, "train")) == ROWS


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?"])
def test_a_path_with_signs_of_patterns_is_the_named_file(name: str, tmp_path: Path):
    write_jsonl(tmp_path / name / "d.jsonl", [{"a": "right"}])
    write_jsonl(tmp_path / name.replace("[1]", "1").replace("*", "x").replace("?", "x") / "d.jsonl", [{"a": "wrong"}])
    assert list(read_rows(tmp_path / name / "d.jsonl")) == [{"a": "right"}]


def test_a_file_that_was_replaced_is_read_again_whatever_its_time(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"a": "old"}])
    state = path.stat()
    assert read_rows(path)[0] == {"a": "old"}
    write_jsonl(path, [{"a": "new"}])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert read_rows(path)[0] == {"a": "new"}


def test_an_answer_that_names_a_file_stays_a_text_and_late_pictures_are_found(tmp_path: Path):
    write_images(tmp_path, a="red")
    rows = [{"question": "?", "image": None, "answer": "a.png"} for _ in range(30)]
    rows.append({"question": "?", "image": "a.png", "answer": "a.png"})
    read = read_rows(write_jsonl(tmp_path / "train.jsonl", rows))
    assert {row["answer"] for row in read} == {"a.png"}
    assert color_of(prompts_from(read, column_mapping())[30]) == [RED]


# --- folders


def test_a_folder_named_after_a_split_names_that_of_its_files(tmp_path: Path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / split / "metadata.jsonl", [{"answer": split}])
    assert [row["answer"] for row in read_rows(tmp_path, "train")] == ["train"]
    assert [row["answer"] for row in read_rows(tmp_path, "test")] == ["test"]


def test_a_subset_of_a_local_snapshot_is_its_folder(tmp_path: Path):
    for subset in ("main", "socratic"):
        write_parquet(tmp_path / subset / "train-00000-of-00001.parquet", {"answer": [subset]})
    assert read_rows(tmp_path, "train", subset="main")["answer"][:] == ["main"]
    with pytest.raises(ValueError, match="has no folder 'other' for subset = 'other'"):
        read_rows(tmp_path, "train", subset="other")


def test_each_split_is_read_from_its_own_kind_of_file(tmp_path: Path):
    write_jsonl(tmp_path / "d" / "train.jsonl", [{"answer": "train"}])
    write_parquet(tmp_path / "d" / "val.parquet", {"answer": ["val"]})
    assert [row["answer"] for row in read_rows(tmp_path / "d", "train")] == ["train"]
    (tmp_path / "d" / "train.jsonl").unlink()
    with pytest.raises(ValueError, match="has no split 'train': name one of 'val'"):
        read_rows(tmp_path / "d", "train")


def test_pictures_of_one_name_in_two_folders_are_each_rows_own(tmp_path: Path):
    for folder, color in (("a", "red"), ("b", "blue")):
        write_images(tmp_path / "d" / folder, x=color)
        write_jsonl(tmp_path / "d" / folder / "train.jsonl", [{"image": "x.png", "question": "?"}])
    rows = read_rows(tmp_path / "d", "train")
    assert [color_of(prompt) for prompt in prompts_from(rows, column_mapping(answer=None))] == [[RED], [BLUE]]
    assert set(rows[0]) == {"image", "question"}


def test_a_folders_splits_are_its_files_names_without_the_numbers_of_shards(tmp_path: Path):
    for shard in range(2):
        write_parquet(tmp_path / "d" / "data" / f"train-0000{shard}-of-00002-ab12.parquet", {"answer": [f"{shard}"]})
    write_parquet(tmp_path / "d" / "data" / "testmini-00000-of-00001.parquet", {"answer": ["test"]})
    write_parquet(tmp_path / "d" / "validation" / "0000.parquet", {"answer": ["validation"]})
    (tmp_path / "d" / "README.md").write_text("no data")
    write_jsonl(tmp_path / "d" / "other.jsonl", [{"answer": "not parquet"}])
    answers = {split: read_rows(tmp_path / "d", split)["answer"][:] for split in ("train", "testmini", "validation")}
    assert answers == {"train": ["0", "1"], "testmini": ["test"], "validation": ["validation"]}
    with pytest.raises(
        ValueError, match=r"has the splits 'testmini', 'train', 'other', 'validation': name one, e.g. read_rows"
    ):
        read_rows(tmp_path / "d")
    with pytest.raises(
        ValueError, match=r"has no split 'test': name one of 'testmini', 'train', 'other', 'validation'"
    ):
        read_rows(tmp_path / "d", "test")


def test_a_folders_paths_lead_from_the_folder_or_from_the_files_own(tmp_path: Path):
    write_images(tmp_path / "a" / "images", x="red")
    write_jsonl(tmp_path / "a" / "lists" / "train.jsonl", [{"image": "images/x.png", "question": "?"}])
    write_images(tmp_path / "b" / "lists", x="blue")
    write_jsonl(tmp_path / "b" / "lists" / "train.jsonl", [{"image": "x.png", "question": "?"}])
    prompts = [prompts_from(read_rows(tmp_path / name), column_mapping(answer=None))[0] for name in "ab"]
    assert [color_of(prompt) for prompt in prompts] == [[RED], [BLUE]]


def test_what_save_to_disk_has_written_is_read(tmp_path: Path):
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "two")
    assert list(read_rows(tmp_path / "one")) == ROWS
    assert list(read_rows(tmp_path / "two", "test")) == ROWS[1:]
    with pytest.raises(ValueError, match="two has the splits 'train', 'test': name one"):
        read_rows(tmp_path / "two")


# --- the hub


def test_a_dataset_of_the_hub_is_read_by_name_split_and_subset(monkeypatch: pytest.MonkeyPatch):
    splits = {("openai/gsm8k", "main"): ["train", "test"], ("owner/only", None): ["test"]}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, subset: splits[name, subset])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: (name, subset, split))
    assert read_rows("openai/gsm8k", "test", subset="main") == ("openai/gsm8k", "main", "test")
    assert read_rows("owner/only") == ("owner/only", None, "test")
    with pytest.raises(ValueError, match="openai/gsm8k has the splits 'train', 'test': name one"):
        read_rows("openai/gsm8k", subset="main")


def test_a_dataset_that_the_hub_does_not_have_is_told(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str, subset: str | None, split: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(
        ValueError,
        match="owner/nothing is neither a file nor a folder, and cannot be read from the hub: Dataset 'owner",
    ):
        read_rows("owner/nothing", "train")


def test_a_large_copy_into_the_cache_is_announced_and_a_small_one_is_not(tmp_path: Path, caplog, monkeypatch):
    path = write_jsonl(tmp_path / "data.jsonl", ROWS)
    read_rows(path)
    assert caplog.messages == []
    monkeypatch.setattr("rollout.data.datasets.LARGE_GIB", path.stat().st_size / 2**30)
    read_rows(path)
    [told] = caplog.messages
    assert told.startswith("the rows of 1 file(s), 0.0 GiB, are copied into /")


# --- what cannot be read


@pytest.mark.parametrize("source", ["train.jsonl", "./data", "/no/such/folder", "a/b/c"])
def test_a_path_that_leads_nowhere_is_not_looked_for_on_the_hub(source: str):
    with pytest.raises(ValueError, match=f"there is no file or folder {source}: give a .parquet, .arrow, .jsonl"):
        read_rows(source)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("data.jsonl", '{"a": 1}\n{"a": \n', "data.jsonl cannot be read as json: line 2 is not JSON"),
        ("data.jsonl", "", "data.jsonl cannot be read as json: it has no rows"),
        ("data.parquet", "no parquet", "data.parquet cannot be read as parquet: ArrowInvalid"),
        (
            "data.txt",
            "text",
            "data.txt has an unknown file type: give a .parquet, .arrow, .jsonl, .json, .csv, .tsv file",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(name: str, content: str, told: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        read_rows(tmp_path / name)


def test_a_folder_without_data_and_a_split_that_a_file_has_not_are_told(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no .parquet, .arrow, .jsonl, .json, .csv, .tsv file"):
        read_rows(tmp_path / "empty")
    path = write_jsonl(tmp_path / "data.jsonl", ROWS)
    assert len(read_rows(path, "train")) == 2
    with pytest.raises(ValueError, match="data.jsonl has no split 'test': name one of 'data'"):
        read_rows(path, "test")
