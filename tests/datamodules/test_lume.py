import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from datamodules import LUME
from datamodules.lume.rows import read_rows
from tests.small_runs import OneWeight, quiet_trainer, zeros

BOTH = ("sc1", "qa0")


def ids(batches: Any) -> list[str]:
    return [i for batch in batches for i in batch["id"]]


def rows_of(folder: Path, name: str) -> list[str]:
    return [row.id for row in read_rows(folder / f"{name}.jsonl", name)]


def test_pairs_for_unlearning(lume: Callable[..., LUME], lume_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = lume(batch_size=6)
    batches = list(data.train_dataloader())
    assert all(set(batch) == {"forget", "retain"} for batch in batches)
    assert sorted(ids(batch["forget"] for batch in batches)) == sorted(rows_of(lume_folder, "forget"))
    assert set(ids(batch["retain"] for batch in batches)) <= set(rows_of(lume_folder, "retain"))
    rows = {row.id: row for name in ("forget", "retain") for row in data.rows[name]}
    for task in (batch[name] for batch in batches for name in batch):
        assert {task[name].dtype for name in ("input_ids", "attention_mask", "labels")} == {torch.int64}
        for i, identifier in enumerate(task["id"]):
            labels, tokens = task["labels"][i], task["input_ids"][i]
            target = labels[labels != -100]
            assert torch.equal(tokens[labels != -100], target)
            assert tokenizer.decode(target) == f" {rows[identifier].output}{tokenizer.eos_token}"
            prompt = tokens[(labels == -100) & (task["attention_mask"][i] == 1)]
            assert tokenizer.decode(prompt) == rows[identifier].input
            assert (tokens[task["attention_mask"][i] == 0] == tokenizer.pad_token_id).all()


def test_anchor(lume: Callable[..., LUME], write_sets: Callable[..., Path]) -> None:
    root = str(write_sets({(f"f{i}", "Task2"): BOTH for i in range(2)}, {(f"r{i}", "Task2"): BOTH for i in range(5)}))
    forget = list(lume(root=root).train_dataloader())
    assert len(ids(batch["forget"] for batch in forget)) == 4
    retain = list(lume(root=root, anchor="retain").train_dataloader())
    assert len(set(ids(batch["retain"] for batch in retain))) == 10
    assert set(Counter(ids(batch["forget"] for batch in retain)).values()) == {2, 3}


@pytest.mark.parametrize(("subset", "names"), [("all", ("forget", "retain")), ("retain", ("retain",))])
def test_subsets(subset: str, names: tuple[str, ...], lume: Callable[..., LUME], lume_folder: Path) -> None:
    loader = lume(subset=subset).train_dataloader()
    first = ids(loader)
    assert sorted(first) == sorted(i for name in names for i in rows_of(lume_folder, name))
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    second = ids(loader)
    assert sorted(second) == sorted(first)
    assert second != first


def test_validation(lume: Callable[..., LUME], lume_folder: Path) -> None:
    for name, loader in zip(("forget", "retain"), lume(eval_batch_size=7).val_dataloader(), strict=True):
        batches = list(loader)
        assert sorted(ids(batches)) == sorted(rows_of(lume_folder, name))
        assert {split for batch in batches for split in batch["split"]} == {name}
        assert [len(batch["id"]) for batch in batches] == [7, 7, 6]


def test_generation(lume: Callable[..., LUME], tokenizer: PreTrainedTokenizerBase) -> None:
    data = lume(eval_batch_size=8)
    batches = list(data.predict_dataloader())
    rows = {row.id: row for name in ("forget", "retain") for row in data.rows[name]}
    assert sorted(ids(batches)) == sorted(rows)
    for batch in batches:
        assert set(batch) == {"input_ids", "attention_mask", "id", "split", "task", "kind", "prompt", "target"}
        assert batch["attention_mask"][:, -1].all()
        for i, identifier in enumerate(batch["id"]):
            row = rows[identifier]
            values = tuple(batch[name][i] for name in ("split", "task", "kind", "prompt", "target"))
            assert values == (row.split, row.task, row.kind, row.input, row.output)
            assert tokenizer.decode(batch["input_ids"][i][batch["attention_mask"][i] == 1]) == row.input
    lengths = [
        (kind, int(n))
        for batch in batches
        for kind, n in zip(batch["kind"], batch["attention_mask"].sum(1), strict=True)
    ]
    assert lengths == sorted(lengths)
    assert {kind for kind, _ in lengths} == {"sc", "qa"}


def test_prompts_are_cut_in_generation_as_in_training(lume: Callable[..., LUME]) -> None:
    with pytest.warns(UserWarning, match=r"\d+ of 40 prompts lose their beginning to max_length=200\."):
        data = lume(max_length=200, batch_size=100)
    trained = {}
    for batch in data.train_dataloader():
        for task in batch.values():
            for i, identifier in enumerate(task["id"]):
                prompt = (task["labels"][i] == -100) & (task["attention_mask"][i] == 1)
                trained[identifier] = task["input_ids"][i][prompt].tolist()
                assert task["attention_mask"][i].sum() <= 200
    asked = {
        identifier: batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist()
        for batch in data.predict_dataloader()
        for i, identifier in enumerate(batch["id"])
    }
    assert trained.items() <= asked.items()
    with pytest.raises(ValueError, match=r"max_length must be at least \d+ for the row .*, whose answer has .*, got 8"):
        lume(max_length=8)


def test_membership(lume: Callable[..., LUME], lume_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = lume()
    generation, membership = data.test_dataloader()
    assert sorted(ids(generation)) == sorted(ids(data.predict_dataloader()))
    texts = {row.document: row.text for row in data.rows["forget"] if row.task == "Task3" and row.kind == "sc"}
    others = [json.loads(line) for line in (lume_folder / "nonmembers.jsonl").read_text().splitlines()]
    texts |= {other["id"]: other["document"] for other in others}
    batches = list(membership)
    assert sorted(ids(batches)) == sorted(texts)
    for batch in batches:
        assert batch["member"].dtype == torch.bool
        attended = batch["attention_mask"] == 1
        assert torch.equal(batch["labels"][attended], batch["input_ids"][attended])
        assert (batch["labels"][~attended] == -100).all()
        for i, identifier in enumerate(batch["id"]):
            assert tokenizer.decode(batch["input_ids"][i][attended[i]]) == texts[identifier]
            member = identifier not in {other["id"] for other in others}
            source = "forget.jsonl" if member else "nonmembers.jsonl"
            assert (bool(batch["member"][i]), batch["source"][i]) == (member, source)
    with pytest.warns(UserWarning, match="hold no Task3 member, so there is no membership attack"):
        assert len(lume(tasks=("Task1",)).test_dataloader()) == 1


def test_hold_out_stands_in_for_missing_nonmembers(lume: Callable[..., LUME], write_sets: Callable[..., Path]) -> None:
    root = write_sets({("1", "Task3"): BOTH, ("2", "Task3"): BOTH, ("a", "Task2"): BOTH}, {("3", "Task3"): BOTH})
    documents = lume(root=str(root)).documents()
    assert [document[:3] for document in documents[:2]] == [(i, f"{i} sc1 asks {i} says", True) for i in "12"]
    assert [(member, source) for _, _, member, source in documents[2:]] == [(False, "synthetic hold-out")] * 2
    assert lume(root=str(root)).documents() == documents
    # the questions need not be selected for the documents to be attacked
    assert lume(root=str(root), kinds=("qa",)).documents() == documents


def test_members_and_nonmembers_by_path(lume: Callable[..., LUME], write_sets: Callable[..., Path]) -> None:
    forget = {(str(i), "Task3"): BOTH for i in range(160)} | {("a", "Task2"): BOTH}
    root = write_sets(forget, {("r", "Task3"): BOTH})
    assert sum(member for _, _, member, _ in lume(root=str(root)).documents()) == 150
    members, others = root / "members.json", root / "others.jsonl"
    members.write_text(json.dumps({"member_document_ids": ["3", "159"]}))
    others.write_text(json.dumps({"id": "x", "document": "Nobody knows."}))
    paths = {"root": str(root), "members_file": str(members), "nonmembers": str(others)}
    assert lume(**paths).documents() == [
        ("3", "3 sc1 asks 3 says", True, "forget.jsonl"),
        ("159", "159 sc1 asks 159 says", True, "forget.jsonl"),
        ("x", "Nobody knows.", False, "others.jsonl"),
    ]
    shutil.copy(members, root / "semeval_mia_ids.json")
    assert [name for name, _, member, _ in lume(root=str(root)).documents() if member] == ["3", "159"]
    assert sum(member for _, _, member, _ in lume(root=str(root), max_documents=7).documents()) == 7
    for content, sentence in (
        ('{"member_document_ids": ["3", "a"]}', "must list Task3 documents of the forget set, got 1 others"),
        ('{"member_document_ids": [3]}', r"must be JSON with a list of ids at \['member_document_ids'\]"),
    ):
        members.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            lume(**paths).documents()
    others.write_text(json.dumps({"id": "r", "document": "Retained."}))
    with pytest.raises(ValueError, match="must hold documents of neither set, got r"):
        lume(root=str(root), nonmembers=str(others)).documents()
    for name in ("members_file", "nonmembers"):
        with pytest.raises(FileNotFoundError, match=r"There is no file nowhere\.json"):
            lume(root=str(root), **{name: "nowhere.json"}).documents()


def test_max_documents(lume: Callable[..., LUME], lume_folder: Path) -> None:
    data = lume(max_documents=1)
    for name in ("forget", "retain"):
        documents = {(row.task, row.document) for row in data.rows[name]}
        assert sorted(task for task, _ in documents) == ["Task1", "Task2", "Task3"]
        whole = read_rows(lume_folder / f"{name}.jsonl", name)
        assert data.rows[name] == [row for row in whole if (row.task, row.document) in documents]
    assert lume(max_documents=1, subset="all").rows == data.rows
    same = {row.document for row in lume(max_documents=1, kinds=("qa",)).rows["forget"]}
    assert same == {row.document for row in data.rows["forget"]}

    def choice(**seeds: int) -> tuple[str, ...]:
        data = lume(max_documents=1, **seeds)
        rows = [row.id for name in ("forget", "retain") for row in data.rows[name]]
        return (*rows, *(text for _, text, _, _ in data.documents()))

    assert len({choice(document_seed=seed) for seed in range(5)}) > 1
    assert len({choice(seed=seed) for seed in range(5)}) == 1


def test_filters_and_splits(lume: Callable[..., LUME], write_sets: Callable[..., Path]) -> None:
    data = lume(tasks=("Task1", "Task3"), kinds=("qa",))
    assert {(row.task, row.kind) for name in data.rows for row in data.rows[name]} == {("Task1", "qa"), ("Task3", "qa")}
    root = write_sets({("1", "Task3"): BOTH, ("2", "Task3"): BOTH}, {("3", "Task3"): BOTH, ("4", "Task3"): BOTH})
    with pytest.raises(FileNotFoundError, match=r"There is no file .*semeval_splits\.json; it must be JSON with a l"):
        lume(root=str(root), splits="train")
    splits = {"forget": {"train": ["1sc1", "1qa0"]}, "retain": {"train": ["4sc1"]}}
    (root / "semeval_splits.json").write_text(json.dumps(splits))
    rows = lume(root=str(root), splits="train").rows
    assert {name: [row.id for row in rows[name]] for name in rows} == {"forget": ["1sc1", "1qa0"], "retain": ["4sc1"]}
    with pytest.raises(ValueError, match=r"must be JSON with a list of ids at \['forget'\]\['other'\]"):
        lume(root=str(root), splits="other")


def test_empty_selection(lume: Callable[..., LUME], write_sets: Callable[..., Path]) -> None:
    root = write_sets({("1", "Task3"): BOTH}, {("3", "Task2"): BOTH})
    with pytest.raises(ValueError, match=r"The retain set is empty after selecting .*tasks=\('Task3',\)"):
        lume(root=str(root), tasks=("Task3",))
    (root / "forget.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"forget\.jsonl is empty"):
        lume(root=str(root))


def test_missing_files(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    files = r"forget\.jsonl and retain\.jsonl"
    sentence = rf"The folder .*lume must hold {files}, and {files} are missing; "
    data = LUME(tokenizer, root=str(tmp_path / "lume"))
    for step in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(FileNotFoundError, match=sentence + "give `root`, or let `download: true` get the files"):
            step()
    assert list(tmp_path.iterdir()) == []


def test_tokenizer(lume_folder: Path, tiny_causal_lm: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = LUME(str(tiny_causal_lm), root=str(lume_folder))
    data.setup("fit")
    assert isinstance(data.tokenizer, PreTrainedTokenizerBase)
    assert LUME(tokenizer, root=str(lume_folder)).tokenizer is tokenizer
    with pytest.raises(ValueError, match="LUME needs a tokenizer: give its name or folder"):
        LUME(root=str(lume_folder)).setup("fit")
    with pytest.raises(ValueError, match=r"tokenizer must be the name or folder of a tokenizer, got '\./nowhere': "):
        LUME("./nowhere", root=str(lume_folder)).setup("fit")


def test_files_are_read_once_and_hparams_are_plain(
    lume: Callable[..., LUME], tokenizer: PreTrainedTokenizerBase
) -> None:
    data = lume()
    rows = data.rows
    data.root = Path("gone")
    data.setup("test")
    assert data.rows is rows
    hparams = LUME(tokenizer, batch_size=3).hparams
    assert "tokenizer" not in hparams
    assert hparams["batch_size"] == 3
    assert LUME("name").hparams["tokenizer"] == "name"
    assert all(isinstance(value, str | int | tuple | None) for value in hparams.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"subset": "both"}, "subset must be of 'unlearn', 'all', 'forget', 'retain', got 'both'"),
        ({"tasks": ("Task1", "Task4")}, "tasks must be of 'Task1', 'Task2', 'Task3', got 'Task4'"),
        ({"kinds": ()}, r"kinds must be of 'sc', 'qa', got \(\)"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LUME(**arguments)


def test_real_files(lume: Callable[..., LUME], lume_root: Path) -> None:
    data = lume(root=str(lume_root), max_length=2048)
    assert {name: len(data.rows[name]) for name in data.rows} == {"forget": 2732, "retain": 2734}
    documents = data.documents()
    assert Counter((member, source) for _, _, member, source in documents) == {
        (True, "forget.jsonl"): 150,
        (False, "synthetic hold-out"): 150,
    }
    listed = json.loads((lume_root / "semeval_mia_ids.json").read_text())["member_document_ids"]
    assert [name for name, _, member, _ in documents if member] == listed


SPLITS = {
    "train": {"forget": (166, 642, 304), "retain": (206, 612, 318)},
    "validation": {"forget": (48, 138, 68), "retain": (54, 150, 74)},
    "other": {"forget": (272, 720, 374), "retain": (232, 738, 350)},
}


@pytest.mark.parametrize(
    "splits", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in SPLITS if name != "train")]
)
def test_real_splits(splits: str, lume: Callable[..., LUME], lume_root: Path) -> None:
    data = lume(root=str(lume_root), splits=splits, max_length=2048)
    counts = Counter((row.split, row.task) for rows in data.rows.values() for row in rows)
    found = {name: tuple(counts[name, f"Task{i}"] for i in (1, 2, 3)) for name in ("forget", "retain")}
    assert found == SPLITS[splits]
    whole = Counter(row.document for row in read_rows(lume_root / "forget.jsonl", "forget"))
    part = Counter(row.document for row in data.rows["forget"])
    assert part.items() <= whole.items()  # no document straddles a split


def test_batches_may_be_overfitted_and_sent_to_workers(lume: Callable[..., LUME], tmp_path: Path) -> None:
    class Forgetful(OneWeight):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            seen.extend(batch["forget"]["id"])
            return super().training_step(next(iter(zeros())), batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    seen: list[str] = []
    data = lume(num_workers=2)
    with pytest.warns(UserWarning, match="You requested to overfit"):
        quiet_trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(Forgetful(), data)
    assert seen[:2] * 3 == seen
    assert len(seen) == 6
    assert ids(data.predict_dataloader()) == ids(lume().predict_dataloader())
    for loader in (data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
        pickle.dumps(loader.dataset)  # as workers that are spawned and not forked need it


def test_by_task_cuts_each_set_into_its_tasks(lume: Callable[..., LUME], lume_folder: Path) -> None:
    data = lume(by_task=True, batch_size=4)
    batches = list(data.train_dataloader())
    names = [f"{name}_task{number}" for name in ("forget", "retain") for number in (1, 2, 3)]
    assert all(list(batch) == names and {len(task["id"]) for task in batch.values()} <= {4} for batch in batches)
    tasks = {row.id: (row.split, row.task.lower()) for name in ("forget", "retain") for row in data.rows[name]}
    for name in names:
        rows = [identifier for identifier, place in tasks.items() if "_".join(place) == name]
        counts = Counter(ids(batch[name] for batch in batches))
        assert set(counts) <= set(rows)
        # the longest forget task comes once; a shorter one is gone through again and again
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum(counts.values()) == 12
        assert name != "forget_task2" or set(counts.values()) == {1}
    assert data.train_dataloader().sampler.identity()["rows of each task"] == "4, 12, 4, 4, 12, 4"  # type: ignore[union-attr]


@pytest.mark.parametrize("by_task", [True, False])
def test_ranks_share_the_batches_and_epochs_differ(by_task: bool, lume: Callable[..., LUME]) -> None:
    def seen(epoch: int, rank: int, world_size: int, batch_size: int) -> list[list[tuple[str, ...]]]:
        data = lume(by_task=by_task, batch_size=batch_size)
        data.trainer = SimpleNamespace(callbacks=[], global_rank=rank, world_size=world_size, limit_train_batches=1.0)  # type: ignore[assignment]
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        return [list(zip(*(task["id"] for task in batch.values()), strict=True)) for batch in loader]

    whole = seen(0, 0, 1, 4)
    assert [a + b for a, b in zip(seen(0, 0, 2, 2), seen(0, 1, 2, 2), strict=True)] == whole
    assert seen(1, 0, 1, 4) != whole


def test_by_task_goes_through_the_longest_task_of_the_anchor(
    lume: Callable[..., LUME], write_sets: Callable[..., Path]
) -> None:
    root = str(write_sets({("1", "Task3"): BOTH}, {(f"r{i}", "Task3"): BOTH for i in range(5)}))
    arguments = {"root": root, "by_task": True, "tasks": ("Task3",), "batch_size": 1}
    for anchor, length in (("forget", 2), ("retain", 10)):
        assert len(lume(**arguments, anchor=anchor).train_dataloader()) == length


def test_by_task_asks_for_rows_of_each_task(lume: Callable[..., LUME], write_sets: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="by_task cuts the sets of subset='unlearn' into tasks, got subset='all'"):
        lume(by_task=True, subset="all")
    root = str(write_sets({("1", "Task3"): BOTH, ("a", "Task2"): BOTH}, {("3", "Task3"): BOTH}))
    with pytest.raises(ValueError, match="the retain set has none of Task2; give tasks without it, or select more"):
        lume(root=root, by_task=True, tasks=("Task2", "Task3")).train_dataloader()
    batch = next(iter(lume(root=root, by_task=True, tasks=("Task3",)).train_dataloader()))
    assert list(batch) == ["forget_task3", "retain_task3"]
