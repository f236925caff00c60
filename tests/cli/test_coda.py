import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules import DrawnSpecies, FewShotPairs
from datamodules.few_shot.pairs import read_pairs
from lit_modules.cli import main
from lit_modules.cli.coda.options import Confusions
from lit_modules.cli.coda.pairs import choose_subsets
from lit_modules.cli.recipes import find_recipe
from lit_modules.coda import Concept
from lit_modules.coda.core.store import Store
from lit_modules.utils.errors import UsageError

FAKES = "tests.coda.fakes"
SPECIES = {"num_known": 4, "num_novel": 1, "train_images": 5, "validation_images": 2, "test_images": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "species"
    DrawnSpecies(str(folder), drawn_size=32, **SPECIES).prepare_data()  # type: ignore[arg-type]
    return folder


@pytest.fixture
def recipe(drawn: Path, tmp_path: Path) -> str:
    given: dict[str, Any] = {
        "data": {
            "class_path": "datamodules.DrawnSpecies",
            "init_args": {"root": str(drawn), "drawn_size": 32, "n_real": 3, **SPECIES},
        },
        "chat": {"class_path": f"{FAKES}.FakeChat", "init_args": {"log": str(tmp_path / "log")}},
        "generator": {"class_path": f"{FAKES}.FakeGenerator", "init_args": {"log": str(tmp_path / "log")}},
        "embedder": f"{FAKES}.FakeEmbedder",
        "settings": {
            **{"kinds": ["textual_contrastive"], "num_images": 2, "trials_per_group": 2, "guards": False},
            **{"width": 32, "height": 32, "min_side": 16, "resamples": 20},
        },
        "confusions": {"num_options": 3, "num_images": 4},
        "store": str(tmp_path / "store"),
    }
    path = tmp_path / "coda.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return str(path)


def asked(folder: Path, what: str | None = None) -> int:
    log = folder / "log"
    facts = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return sum(what is None or fact[0] == what for fact in facts)


def test_stages_one_after_another_ask_nothing_twice(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    took = []
    for action in ("features", "score", "generate", "verify", "augment"):
        assert main(["coda", action, "-c", recipe]) == 0
        took.append((asked(tmp_path, "chat"), asked(tmp_path, "image")))
    assert took == [(2, 0), (2, 4), (2, 8), (10, 8), (10, 8)]
    said = capsys.readouterr().out
    assert "Everything was there: no model was asked and nothing drawn." in said
    assert "10 calls and 8 images" in said
    apart = Store(tmp_path / "store", writable=False).content_hashes()
    assert main(["coda", "augment", "-c", recipe, "--store", str(tmp_path / "whole")]) == 0
    assert Store(tmp_path / "whole", writable=False).content_hashes() == apart


def test_a_dry_run_asks_and_writes_nothing(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coda", "augment", "-c", recipe, "--dry-run", "--prices.image", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "2 units to do, 0 done" in said
    assert "Cost: 4.00 to 22.00 by the prices given." in said
    assert main(["coda", "generate", "-c", recipe, "--dry-run"]) == 0
    assert "verification" not in capsys.readouterr().out
    assert main(["coda", "pairs", "-c", recipe, "--dry-run"]) == 0
    assert "Subsets: 1. Questions: at most 4;" in capsys.readouterr().out
    assert not asked(tmp_path)
    assert not (tmp_path / "store").exists()


def test_the_command_line_overrides_the_file(recipe: str, tmp_path: Path) -> None:
    store = tmp_path / "other"
    more = ["--settings.num_images", "3", "--settings.verification", "none", "--data.n_real", "2"]
    assert main(["coda", "augment", "-c", recipe, "--store", str(store), *more, "--preset", "official"]) == 0
    settings = json.loads((store / "manifest.json").read_text())["settings"]
    assert (settings["num_images"], settings["verification"]) == (3, "none")
    assert settings["guards"] is False
    assert settings["retries"] == 1  # of the preset
    assert len(list(store.glob("*/*/textual_contrastive/images/*.png"))) == 6


def test_a_stop_an_interrupt_and_failures_give_a_code_and_the_next_run_goes_on(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = "tests.cli.coda_models"
    log = ["--chat.log", str(tmp_path / "log")]
    for more, code, text in (
        (["--chat", f"{models}.PoorChat", *log], 1, "stopped: 2 calls are used up. What is done is kept"),
        (["--chat", f"{models}.InterruptedChat", *log], 130, "Interrupted; the same command resumes in"),
        (["--generator.fail_on", "photograph"], 1, "contrastive: ConnectionError: the generator is away"),
        (["--shard", "1/2"], 0, ""),
        (["--shard", "2/2"], 0, ""),
    ):
        assert main(["coda", "augment", "-c", recipe, *more]) == code
        assert text in capsys.readouterr().out
    assert asked(tmp_path, "chat") == 10


def test_pairs_are_found_and_taken_by_the_datamodules(
    recipe: str, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    chat = ["--chat", "tests.cli.coda_models.FirstChat", "--confusions.targets", "all"]
    line = ["coda", "pairs", "-c", recipe, *chat, "--confusions.num_options", "2", "--output", str(output)]
    assert main(line) == 0
    found = json.loads(output.read_text())
    assert found["model"] == "the first name"
    assert found["threshold"] == 0.2
    assert {pair["error_rate"] for pair in found["pairs"]} == {1.0}
    assert [pair.target for pair in read_pairs(output)] == [pair["target"] for pair in found["pairs"]]
    data = FewShotPairs(str(drawn), str(output), n_real=2, near_duplicates=False)
    data.setup("fit")
    assert {pair.target.name for pair in data.pairs} == {pair["target"] for pair in found["pairs"]}
    before = output.read_bytes()
    capsys.readouterr()
    assert main(line) == 0
    assert output.read_bytes() == before
    assert "no model was asked" in capsys.readouterr().out


def test_export_is_read_by_the_datamodule(
    recipe: str, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coda", "augment", "-c", recipe]) == 0
    output, chats = tmp_path / "out", tmp_path / "chats.jsonl"
    line = ["coda", "export", "-c", recipe, "--output", str(output), "--chat-file", str(chats)]
    assert main(line) == 0
    assert "4 images are in" in capsys.readouterr().out
    for pairs in (None, str(output / "pairs.json")):
        data = FewShotPairs(
            str(drawn), pairs, n_real=3, n_synthetic=2, method="synthetic", synthetic_root=str(output),
            features=str(output / "features.json"), near_duplicates=False,
        )  # fmt: skip
        origins = [data.split("train")[place]["origin"][0] for place in range(10)]
        assert origins.count("synthetic") == 4
        assert data.split("train")[0]["features"][0][0]
    rows = [json.loads(text) for text in chats.read_text().splitlines()]
    assert len(rows) == 10
    user, answer = rows[0]["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert answer["content"] in user["content"][1]["text"]
    coded = user["content"][0]["image_url"]["url"].partition(",")[2]
    assert base64.b64decode(coded).startswith(b"\x89PNG")


def test_report_at_any_time_of_a_run(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coda", "score", "-c", recipe]) == 0
    asked_before = asked(tmp_path)
    assert main(["coda", "report", "-c", recipe, "--prices.image", "0.5"]) == 0
    page = (tmp_path / "store" / "report.html").read_text(encoding="utf-8")
    assert "Not done: images (2 of 2), verification (2 of 2)." in page
    assert "<td>2.00</td>" in page  # four trial images
    assert main(["coda", "augment", "-c", recipe]) == 0
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"method": "CoDA", "real": 3, "synthetic": 2, "accuracy": 0.625}]))
    output = tmp_path / "made" / "page.html"
    line = ["coda", "report", "--store", str(tmp_path / "store"), "--output", str(output), "--max-images", "1"]
    assert main([*line, "--results", str(results)]) == 0  # needs no recipe
    assert f"{output} (0.0 MB) holds everything" in capsys.readouterr().out
    page = output.read_text(encoding="utf-8")
    assert "All stages are done." in page
    assert "62.5" in page
    assert "accepted images: 2, 1 of 2 shown" in page
    assert asked_before < asked(tmp_path) == 18
    results.write_text('[{"method": "CoDA", "real": 3, "synthetic": 2, "accuracy": 62.5}]')
    with pytest.raises(ValueError, match=r"results.json, row 1: accuracy must be a share in"):
        main([*line, "--results", str(results)])


def test_annotate(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coda", "augment", "-c", recipe]) == 0
    folder = tmp_path / "people"
    assert main(["coda", "annotate", "export", "-c", recipe, "--output", str(folder), "--num-items", "2"]) == 0
    for path in folder.glob("annotator-*.csv"):
        path.write_text(path.read_text().replace(",\n", ",yes\n"))
    capsys.readouterr()
    assert main(["coda", "annotate", "score", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["real", "target", "2", "100.00", "%", "-"]
    assert len(lines) == 4


MISTAKES: list[tuple[str, type[Exception], str]] = [
    ("augment --shard 5/4", UsageError, "shard must be i/n with i from 1 to n, such as 1/4; got '5/4'"),
    ("augment --settings.num_image 4", UsageError, "did you mean '--settings.num_images'"),
    ("augment --settings.num_images few", UsageError, "settings.num_images must be int, got 'few'"),
    ("augment --settings.num_images 0", ValueError, "num_images must be at least 1, got 0"),
    ("augment --budget.calls 4", UsageError, "none of the models is behind one"),
    ("augment --data.n_rael 4", UsageError, "DrawnSpecies has no argument 'n_rael'; did you mean 'n_real'"),
    ("augment --data.n_real 9", ValueError, "9 training images of each concept are needed"),
    ("augment --data FewShotPairs --data.root none", FileNotFoundError, "There is no folder"),
    (
        "augment --data FewShotPairs --data.root .",
        FileNotFoundError,
        r"There is no .*pairs\.json; give `pairs`, or find the pairs",
    ),
    ("augment -c wrong.yaml", UsageError, "There is no key 'generater'; did you mean 'generator'"),
    ("agument", UsageError, "There is no action 'agument'; did you mean 'augment'"),
    ("pairs --shard 1/2", UsageError, "these are not known yet"),
    ("export --output x --kind textual", UsageError, "kind must be 'textual_plain' or .* got 'textual'"),
    ("report", FileNotFoundError, "There is no store"),
]


@pytest.mark.parametrize(("line", "kind", "message"), MISTAKES)
def test_mistakes_are_one_sentence(
    line: str, kind: type[Exception], message: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text("generater: tests.coda.fakes.FakeGenerator\n")
    action, *more = line.split()
    with pytest.raises(kind, match=message):
        main(["coda", action, "-c", recipe, *more])


def test_what_an_action_needs_is_told() -> None:
    with pytest.raises(UsageError, match="needs data and chat and generator and embedder: add --data"):
        main(["coda", "augment"])


def test_help_names_the_actions_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    for line, text in (
        (["--help"], "augment     Run all of these stages"),
        (["annotate", "export", "--help"], "--num_items NUM_ITEMS"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["coda", *line])
        assert text in capsys.readouterr().out
    assert main(["coda", "annotate", "--help"]) == 0


@pytest.mark.parametrize("name", ["drawn", "local", "endpoints"])
def test_shipped_files_are_understood(name: str, tmp_path: Path) -> None:
    path = find_recipe(f"coda_augmentation/{name}.yaml")
    assert "api_key:" not in path.read_text()
    more = ["--data.root", str(tmp_path / "no"), "--store", str(tmp_path / "none"), "--kind", "visual_contrastive"]
    with pytest.raises(FileNotFoundError, match="There is no store"):
        main(["coda", "export", "-c", str(path), "--output", str(tmp_path / "out"), *more])


def test_all_known_concepts_of_a_super_category_may_be_options() -> None:
    known = [Concept(name, group) for name, group in (("a", "frog"), ("b", "frog"), ("c", "bird"), ("d", "bird"))]
    novel = Concept("new", "frog", known=False)
    (found,) = choose_subsets([*known, novel], Confusions(num_options=None))
    assert found == (("a", "b", "new"), ("new",))
    both = choose_subsets([*known, novel], Confusions(num_options=None, targets="all"))
    assert {names for names, _ in both} == {("c", "d"), ("a", "b", "new")}
    with pytest.raises(ValueError, match=r"confusions.num_options must be at least 2, got 1"):
        Confusions(num_options=1)
