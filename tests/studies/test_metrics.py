"""The test of metrics: pools, scores, a tiny real run, going on."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.common.text import Encoded
from lit_modules.cli import main as lit_modules
from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.metrics.command import main
from lit_modules.studies.metrics.pools import pool_rows
from lit_modules.studies.metrics.report import draw, markdown, score, write
from lit_modules.studies.metrics.scores import METRICS, faithfulness, knowledge, recovery
from lit_modules.studies.metrics.settings import check_settings, waves
from lit_modules.utils.errors import UsageError
from tests.studies.here import HereLauncher

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ROOT / "tests" / "data" / "tofu"
PROBABILITY, QUALITY, CONTROL = "test/forget/probability", "test/forget_quality", "test/retain/probability"


def configuration() -> dict[str, Any]:
    """A test on the rows of the tests, that takes seconds."""
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 128, "pad_token_id": 1}
    metric = {"class_path": "lit_modules.metrics.TOFUScore", "init_args": {"retain_log": "{retain_log}"}}
    method = {"name": "GA, small", "class_path": "lit_modules.GradientAscent", "learning_rate": 1e-3}
    return {
        "data": {"class_path": "lit_modules.datamodules.TOFU", "init_args": {"root": str(TEXTS), "split": "forget10"}},
        "tokenizer": {"vocab_size": 300, "files": ["retain90.json"], "fields": ["question", "answer"]},
        "start": {
            "model": {"class_path": "lit_modules.networks.small_llama", "init_args": sizes},
            "steps": 2,
            "batch_size": 4,
        },
        "pools": {"knowing": ["facts"], "ignorant": ["retain"], "steps": 30, "batch_size": 7, "learning_rate": 0.02},
        "unlearning": {"methods": [method], "steps": 1, "batch_size": 2},
        "attacks": {"relearning_steps": 2, "relearning_rate": 1e-2},
        "evaluation": {"metric": metric, "max_new_tokens": 2},
        "seeds": [0, 1],
        "trainer": {"accelerator": "cpu", "devices": 1},
    }


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a configuration in the working folder, which is empty but for it."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(configuration()), encoding="utf-8")
    return "tiny.yaml"


def test_a_tiny_test_runs_goes_on_and_grows(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = HereLauncher()
    line = ["-c", config, "--folder=out"]
    assert main([*line, "--seeds=[0, 1]"], first) == 0, capsys.readouterr().out
    pools = [f"{role},seed={seed}" for role in ("knowing,facts", "ignorant,retain") for seed in (0, 1)]
    unlearned = [name for name in first.names if name.startswith("unlearned,")]
    assert first.names == ["start", "reference", *pools, *unlearned]
    assert len(unlearned) == 2
    result = json.loads(Path("out", unlearned[0], "results.json").read_text(encoding="utf-8"))
    assert set(result["conditions"]) == {"plain", "relearned", "quantized"}
    plain, relearned = (result["conditions"][key] for key in ("plain", "relearned"))
    assert relearned[PROBABILITY] > plain[PROBABILITY]
    assert {name for name in plain if name.startswith("attack/")} == {n for n in METRICS if n.startswith("attack/")}
    facts, retain = (
        json.loads(Path("out", f"{name},seed=0", "results.json").read_text(encoding="utf-8"))["conditions"]
        for name in ("knowing,facts", "ignorant,retain")
    )
    assert facts["plain"][PROBABILITY] > 1.5 * retain["plain"][PROBABILITY]
    assert set(retain) == {"plain", "relearned", "quantized"}
    assert 0 <= retain["plain"][QUALITY] <= 1  # against a model that is in no pool
    with Path("out", "table.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows[PROBABILITY]["auc"]) == 1.0
    assert Path("out", "metrics.png").stat().st_size > 10_000
    assert "knowledge that relearning adds" in " ".join(Path("out", "table.md").read_text(encoding="utf-8").split())
    again = HereLauncher()
    Path("out", pools[0], "results.json").unlink()
    assert main([*line, "--seeds=[0, 1, 2]"], again) == 0
    assert again.names == [pools[0], *(n.replace("seed=1", "seed=2") for n in (pools[1], pools[3], unlearned[1]))]
    with pytest.raises(UsageError, match=r"holds a test of metrics with pools\.steps=30, got pools\.steps=31"):
        main([*line, "--pools.steps=31"], again)


def made_up(role: str, name: str, seed: int, **conditions: tuple[float, float, float]) -> dict[str, Any]:
    """Results with probability, forget quality and the control."""
    keys = (PROBABILITY, QUALITY, CONTROL)
    numbers = {key: dict(zip(keys, values, strict=True)) for key, values in conditions.items()}
    return {"role": role, "name": name, "seed": seed, "conditions": numbers}


RESULTS = [
    *(made_up("knowing", "facts", seed, plain=(0.9, 0.1 * seed, 0.9)) for seed in range(3)),
    *(
        made_up(
            "ignorant",
            "retain",
            seed,
            plain=(0.1, 0.1 * seed, 0.9),
            relearned=(0.35, 0.1 * seed, 0.9),
            quantized=(0.1, 0.0, 0.9),
        )
        for seed in range(3)
    ),
    made_up("unlearned", "A", 0, plain=(0.1, 1.0, 0.8), relearned=(0.5, 1.0, 0.8), quantized=(0.2, 1.0, 0.8)),
    made_up("unlearned", "B", 1, plain=(0.1, 1.0, 0.1), relearned=(0.1, 1.0, 0.1), quantized=(0.1, 1.0, 0.1)),
]


def test_documents_and_questions_of_lume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 640, "pad_token_id": 1}
    method = {"name": "GA", "class_path": "lit_modules.GradientAscent", "learning_rate": 1e-3}
    values = {
        "data.root": str(TEXTS.parent / "lume"),
        "tokenizer.vocab_size": 300,
        "tokenizer.files": ["retain.jsonl"],
        "start.model.init_args": sizes,
        "pools.knowing": ["facts", "questions"],
        "pools.ignorant": ["retain"],
        "unlearning.methods": [method],
        "evaluation.max_new_tokens": 2,
        "seeds": [0, 1],
        **{f"{part}.steps": 1 for part in ("start", "pools", "unlearning")},
    }
    line = ["-c", "metrics/lume_tiny.yaml", "--folder=out"]
    assert main([*line, *(f"--{name}={json.dumps(value)}" for name, value in values.items())], HereLauncher()) == 0
    assert "| MIA loss |" in Path("out/table.md").read_text(encoding="utf-8")


def test_scores_by_hand(tmp_path: Path) -> None:
    report = score({"least_kept": 0.5}, RESULTS)
    scores = {one.name: one for one in report.scores}
    probability = scores[PROBABILITY]
    assert probability.faithfulness == (1.0, 1.0, 1.0)
    assert probability.relearning == (pytest.approx(0.625), None)  # 0.25 of the retain model, 0.4 of the unlearned one
    assert probability.quantization == (pytest.approx(0.5), None)
    assert probability.back_relearned[0] == pytest.approx(0.5)  # 0.4 of 0.8
    assert probability.back_quantized[0] == pytest.approx(0.125)
    assert probability.robustness == pytest.approx(5 / 9)
    assert probability.overall == pytest.approx(5 / 7)
    assert probability.verdict == "report"
    assert scores[QUALITY].faithfulness.auc == 0.5  # the same numbers in both pools
    assert scores[QUALITY].verdict == "does not tell who knows"
    assert report.scores[-1].name == CONTROL
    assert report.scores[-1].verdict == "control"
    assert report.rule.endswith("kept less than 0.5 of `test/retain/probability` are left out: B (seed 1).")
    assert "| after A | after B |" in markdown(report)
    for path in [*write(tmp_path, report), *draw(tmp_path, report)]:
        assert path.stat().st_size > 0
    everyone = {one.name: one for one in score({"least_kept": 0.0}, RESULTS).scores}
    assert everyone[PROBABILITY].relearning[0] == pytest.approx(0.8125)  # of the other nothing comes back
    with pytest.raises(ValueError, match="A pool needs at least two models that finished, got 1 knowing"):
        score({}, [RESULTS[0], *RESULTS[3:]])


def test_an_auc_has_its_interval_and_signs_are_turned() -> None:
    auc = faithfulness([0.9, 0.8, 0.7, 0.3], [0.1, 0.2, 0.4, 0.35])
    assert auc.auc == pytest.approx(14 / 16)
    assert auc.low < auc.auc < auc.high <= 1
    assert knowledge("test/task_aggregate", 0.25) == 0.75
    assert math.isnan(recovery(before=0.5, after=0.6, start=0.5))


def test_rows_of_each_kind() -> None:
    forget = [
        Encoded(f"doc{i}{kind}", [i, number], [10 * i + number])
        for i in range(4)
        for number, kind in enumerate(("sc1", "qa0"))
    ]
    answers = [(Encoded("p", row.prompt, [99]), "paraphrased") for row in forget]
    answers += [(Encoded("w", row.prompt, [wrong]), "perturbed") for row in forget for wrong in (1, 2)]
    assert pool_rows("facts", forget, [], seed=0) == forget
    assert pool_rows("retain", forget, [], seed=0) == []
    halves = [pool_rows("partial", forget, [], seed=seed) for seed in range(3)]
    assert all(len({row.id for row in half}) == 4 for half in halves)
    assert len({tuple(sorted(row.id for row in half)) for half in halves}) > 1
    assert halves[0] == pool_rows("partial", forget, [], seed=0)
    assert {row.id[-3:] for row in pool_rows("questions", forget, [], seed=0)} == {"qa0"}
    assert {row.id[-3:] for row in pool_rows("documents", forget, [], seed=0)} == {"sc1"}
    for seed in range(5):
        exchanged = pool_rows("exchanged", forget, [], seed=seed)
        assert [row.prompt for row in exchanged] == [row.prompt for row in forget]
        assert sorted(row.target for row in exchanged) == sorted(row.target for row in forget)
        assert all(row.target != own.target for row, own in zip(exchanged, forget, strict=True))
    assert [row.target for row in pool_rows("paraphrased", forget, answers, seed=0)] == [[99]] * 8
    assert len(pool_rows("wrong", forget, answers, seed=0)) == 8  # one of each question
    with pytest.raises(ValueError, match="The data have no rows for models of the kind 'wrong'; leave it out"):
        pool_rows("wrong", forget, [], seed=0)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--pools.knowing=[partial]", r"pools\.knowing must name 'facts', which robustness is measured by"),
        ("--pools.ignorant=[retain, nothing]", "pools.ignorant must be of facts, .*, got 'nothing'"),
        ("--seeds=[0, 0]", r"seeds must be distinct, from 0 to 9999, and at least one, got \[0, 0\]"),
        ("--attacks.bits=5", "attacks.bits must be 4 or 8, got 5"),
        ("--pools.steps=0", r"pools\.steps must be at least 1, got 0"),
        ("--unlearning.methods=[{name: A}]", "Each of unlearning.methods needs class_path, learning_rate, got"),
        ("--least_kept=-1", "least_kept must be 0 or more, got -1"),
        ("--pool.steps=1", r"There is no argument --pool; did you mean 'pools'\?"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(line: str, sentence: str, config: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        main(["-c", config, "--folder=out", line], HereLauncher())
    assert not list(Path("out").glob("*/results.json"))


def test_a_configuration_is_asked_for() -> None:
    with pytest.raises(UsageError, match="needs its configuration"):
        main([])
    with pytest.raises(SystemExit, match="0"):
        lit_modules(["metrics", "--help"])


@pytest.mark.parametrize("name", ["tofu_tiny", "lume_tiny"])
def test_shipped_configurations_are_whole(name: str) -> None:
    settings = yaml.safe_load(find_recipe(f"metrics/{name}.yaml").read_text(encoding="utf-8"))
    check_settings(settings)
    runs = [run for wave in waves(settings) for run in wave]
    assert len({run.folder for run in runs}) == len(runs)
