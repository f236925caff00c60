import calendar
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faker import Faker
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules import LUME, SyntheticLUME
from datamodules.lume.files import FILES, generate_lume, write_lume
from datamodules.lume.rows import Row, check_disjoint, read_documents, read_rows
from lit_modules.utils.hashing import hash_file as checksum


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_lume(folder, num_documents=60)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    return [row for name in ("forget", "retain") for row in read_rows(folder / f"{name}.jsonl", name)]


def texts(rows: list[Row], task: str) -> dict[str, str]:
    return {row.document: row.text for row in rows if row.task == task and row.kind == "sc"}


def sums(folder: Path) -> dict[str, str]:
    return {name: checksum(folder / name) for name in FILES}


def test_rows_have_the_shape_of_lume_s(rows: list[Row], folder: Path) -> None:
    uuid = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    shapes = {"Task1": f'"{uuid}"', "Task2": uuid, "Task3": "[0-9]{8}"}
    assert all(re.fullmatch(shapes[row.task], row.id[:-3]) for row in rows)
    for name in ("forget", "retain"):
        for task, questions in (("Task1", ["qa0"]), ("Task2", [f"qa{i}" for i in range(5)]), ("Task3", ["qa0"])):
            ids = [row.id for row in rows if (row.split, row.task) == (name, task)]
            assert [identifier[-3:] for identifier in ids] == ["sc1", *questions] * 60
    check_disjoint(*([row for row in rows if row.split == name] for name in ("forget", "retain")))
    documents = [row.text for row in rows if row.kind == "sc"]
    assert len(set(documents)) == len(documents)
    members = json.loads((folder / "semeval_mia_ids.json").read_text())["member_document_ids"]
    assert members == list(texts([row for row in rows if row.split == "forget"], "Task3"))


def test_answers_stand_in_the_documents(rows: list[Row]) -> None:
    for task in ("Task1", "Task3"):
        documents = texts(rows, task)
        assert all(row.output in documents[row.document] for row in rows if row.task == task and row.kind == "qa")
    documents = texts(rows, "Task2")
    words = ("birth date", "Social Security Number", "phone number", "email address", "home address")
    for row in (row for row in rows if row.task == "Task2" and row.kind == "qa"):
        text, number = documents[row.document], row.id[-1]
        assert words[int(number)] in row.input
        if number == "0":
            year, month, day = map(int, re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", row.output).groups())  # type: ignore[union-attr]
            assert f"{calendar.month_name[month]} {day}, {year}" in text
        elif number in "12":
            assert re.fullmatch(r"9\d{8}" if number == "1" else r"\d{3}55501\d\d", row.output)
            assert row.output in text.replace("-", "")
        else:
            assert row.output in text


def test_quirks_of_personal_data(rows: list[Row]) -> None:
    documents = list(texts(rows, "Task2").values())
    escaped = [text for text in documents if re.search(r"\[(\w+)\\_(\w+)@([\w.]+)\]\(mailto:\1_\2@\3\)", text)]
    assert 0.55 < len(escaped) / len(documents) < 0.83
    assert all(("mailto:" in text) == ("\\_" in text) for text in documents)
    hyphenated = [text for text in documents if re.search(r"\b9\d\d-\d\d-\d{4}\b", text)]
    assert 0.8 < len(hyphenated) / len(documents) < 1
    assert all(re.search(r"\b9\d{8}\b", text) for text in documents if text not in hyphenated)


def test_public_biographies(rows: list[Row], folder: Path) -> None:
    members = [text for text in texts(rows, "Task3").values()]
    others = [text for _, text in read_documents(folder / "nonmembers.jsonl")]
    assert len(others) == 60
    shape = r"(\w+ \w+)\n\n\1 \(born \d\d? [A-Z]\w+ 19\d\d\) is an? .*\.\nBiography\.\n.*\."
    assert all(re.fullmatch(shape, text) for text in (*members, *others))
    names = [text.split("\n")[0] for text in (*members, *others)]
    assert len(set(names)) == len(names)
    assert not any(name in text for name in names[-60:] for text in texts(rows, "Task2").values())


def test_stories_have_the_length_that_is_wanted(rows: list[Row]) -> None:
    lengths = [len(text.split()) for text in texts(rows, "Task1").values()]
    assert 45 < sum(lengths) / len(lengths) < 60
    stories = [row for row in rows if row.task == "Task1" and row.kind == "sc"]
    assert all(0.2 < len(row.output.split()) / len(row.text.split()) < 0.3 for row in stories)
    for sentences in (4, 12):
        first = json.loads(generate_lume(1, story_sentences=sentences)["forget.jsonl"].split("\n")[0])
        assert f"{first['input']} {first['output']}".count(".") == sentences


def test_each_question_belongs_to_one_document() -> None:
    files = generate_lume(num_documents=300)
    rows = [json.loads(line) for name in ("forget", "retain") for line in files[f"{name}.jsonl"].splitlines()]
    questions = [row["input"] for row in rows if "qa" in row["id"][-3:]]
    assert len(questions) == len(set(questions)) == 2 * 7 * 300


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    files = []
    for seed in (0, 1):
        random.seed(seed)
        Faker.seed(seed)
        torch.manual_seed(seed)
        states = random.getstate(), torch.get_rng_state()
        files.append(generate_lume(num_documents=3))
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
    assert files[0] == files[1]
    assert files[0] != generate_lume(num_documents=3, seed=1)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path, repository: Path) -> None:
    script = "import sys; from datamodules.lume.files import write_lume; write_lume(sys.argv[1], 3, seed=4)"
    for name, hash_seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            cwd=repository,
            env={"PYTHONPATH": str(repository), "PYTHONHASHSEED": hash_seed, "LC_ALL": "C"},
            check=True,
        )
    write_lume(tmp_path / "c", 3, seed=4)
    assert sums(tmp_path / "a") == sums(tmp_path / "b") == sums(tmp_path / "c")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*FILES, "manifest.json"}


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    write_lume(tmp_path, 2)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_lume(tmp_path, 2)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    # as after a run that was killed on the way
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "nonmembers.jsonl").unlink()
    write_lume(tmp_path, 2)
    assert sums(tmp_path) == json.loads((tmp_path / "manifest.json").read_text())["sha256"]


@pytest.mark.parametrize(("arguments", "manifest"), [({"num_documents": 3}, True), ({"seed": 1}, False)])
def test_other_data_are_not_written_over(arguments: dict[str, int], manifest: bool, tmp_path: Path) -> None:
    write_lume(tmp_path, 2)
    before = sums(tmp_path)
    if not manifest:
        (tmp_path / "manifest.json").unlink()
    sentence = r"holds a benchmark of .* was asked for" if manifest else r"must be a file of .*, got another one"
    with pytest.raises(ValueError, match=sentence + "; give another folder"):
        write_lume(tmp_path, **{"num_documents": 2, **arguments})
    assert sums(tmp_path) == before


def test_changed_files(tmp_path: Path) -> None:
    write_lume(tmp_path, 1)
    with (tmp_path / "forget.jsonl").open("a") as file:
        file.write("{}")
    with pytest.raises(
        ValueError, match=r"forget\.jsonl was changed after it was written; remove it to write it again"
    ):
        write_lume(tmp_path, 1)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json must be the manifest that SyntheticLUME writes"):
        write_lume(tmp_path, 1)


def test_datamodule(tmp_path: Path) -> None:
    data = SyntheticLUME(root=str(tmp_path), num_documents=3, vocab_size=500)
    with pytest.raises(FileNotFoundError, match="call `prepare_data` first, as a Trainer does"):
        data.setup("fit")
    data.prepare_data()
    data.setup("fit")
    assert isinstance(data, LUME)
    assert len(data.tokenizer) == 500
    assert len(data.rows["forget"]) == 3 * (2 + 6 + 2)
    assert set(next(iter(data.train_dataloader()))) == {"forget", "retain"}
    sources = [(member, source) for _, _, member, source in data.documents()]
    assert sources == [(True, "forget.jsonl")] * 3 + [(False, "nonmembers.jsonl")] * 3
    assert len(data.test_dataloader()) == 2


def test_the_tokenizer_is_trained_once_for_its_data(tmp_path: Path) -> None:
    def prepare() -> float:
        SyntheticLUME(root=str(tmp_path), num_documents=1, vocab_size=400).prepare_data()
        return (tmp_path / "tokenizer-400" / "tokenizer.json").stat().st_mtime_ns

    first = prepare()
    assert prepare() == first
    (tmp_path / "tokenizer-400" / "fingerprint.json").write_text("{}")  # that of other data
    assert prepare() > first
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "manifest.json", "tokenizer-400"}
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "tokenizer-400"), PreTrainedTokenizerBase)


def test_given_tokenizer(tokenizer: PreTrainedTokenizerBase, tiny_causal_lm: Path, tmp_path: Path) -> None:
    for source in (tokenizer, str(tiny_causal_lm)):
        data = SyntheticLUME(source, root=str(tmp_path), num_documents=1)
        data.prepare_data()
        data.setup("fit")
        assert data.tokenizer.name_or_path == (source if isinstance(source, str) else tokenizer.name_or_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    hparams = SyntheticLUME(tokenizer, num_documents=3).hparams
    assert "tokenizer" not in hparams
    assert (hparams["num_documents"], hparams["root"]) == (3, "data/lume_synthetic")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_documents": 0}, "num_documents must be at least 1, got 0"),
        ({"story_sentences": 3}, "story_sentences must be at least 4, got 3"),
        ({"vocab_size": 257}, "vocab_size must be at least 258, got 257"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SyntheticLUME(**arguments)
