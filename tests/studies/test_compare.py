"""Comparisons: what is refused, a tiny real run, going on, equal spending, the report."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_modules.cli.recipes import find_recipe
from lit_modules.studies.compare.command import main
from lit_modules.studies.compare.published import find_published
from lit_modules.studies.compare.records import run_records
from lit_modules.studies.compare.report import compare, markdown, print_best, write
from lit_modules.studies.compare.run import check_spending
from lit_modules.studies.compare.settings import Run, check_settings, runs_of
from lit_modules.studies.launchers import Outcome, Task
from lit_modules.utils.errors import UsageError
from tests.studies.here import HereLauncher

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ROOT / "tests" / "data" / "tofu"
REPORT = {"forget": "test/forget/probability", "retain": "test/retain/probability"}


def configuration() -> dict[str, Any]:
    """A comparison on the rows of the tests, that takes seconds."""
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 128, "pad_token_id": 1}
    model = {"class_path": "lit_modules.networks.small_llama", "init_args": sizes}
    metric = {"class_path": "lit_modules.metrics.TOFUScore", "init_args": {"retain_log": "{retain_log}"}}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return {
        "data": {"class_path": "datamodules.TOFU", "init_args": {"root": str(TEXTS), "split": "forget10"}},
        "tokenizer": {"vocab_size": 300, "files": ["retain90.json"], "fields": ["question", "answer"]},
        "start": {"model": model, "steps": 12, "batch_size": 7},
        "methods": [
            {"name": "NGDiff", "class_path": "lit_modules.NGDiff"},
            {"name": "NPO", "class_path": "lit_modules.NPO", "learning_rates": [1e-3]},
        ],
        "seeds": [0],
        "learning_rates": [1e-3, 1e-2],
        "max_steps": 2,
        "effective_batch": 2,
        "batch_size": 1,
        "optimizer": {"class_path": "torch.optim.AdamW"},
        "evaluation": {"metric": metric, "max_new_tokens": 2},
        "report": REPORT,
        "trainer": {"accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 0, **quiet},
    }


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a configuration in the working folder, which is empty but for it."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(configuration()), encoding="utf-8")
    return "tiny.yaml"


class MadeUpLauncher(HereLauncher):
    """Write results without running anything: a method's rate is what it forgets."""

    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.broken = broken

    def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        for task in tasks:
            for folder in map(Path, task.arguments[2:]):
                self.names.append(folder.name)
                if folder.name == self.broken:
                    (folder / "log.txt").write_text("error: ValueError: It broke.\n", encoding="utf-8")
                else:
                    results = made_up(json.loads((folder / "run.json").read_text(encoding="utf-8")))
                    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
            yield Outcome(task.name, 0)


def made_up(record: dict[str, Any]) -> dict[str, Any]:
    values, counted = record["values"], record["count"]
    forget = {"start": 0.9, "retain": 0.1}.get(values.get("model", ""), 0.5)
    if counted:
        forget = 0.9 - 10 * values["learning_rate"] - 0.01 * values["seed"]
    metrics = {REPORT["forget"]: forget, REPORT["retain"]: 0.8}
    counts = spending() if counted else None
    return {"values": values, "metrics": metrics, "counts": counts, "seconds": {"train": 1.0, "test": 2.0}}


def spending() -> dict[str, Any]:
    names = ("retain_rows", "retain_tokens", "retain_tokens_trained", "forward_passes", "backward_passes")
    zero = dict.fromkeys([*names, "forward_passes_without_gradient", "steps_without_update"], 0)
    return {"steps": 2, "rows_per_step": {"2": 2}, "forget_rows": 4, "forget_tokens": 50, **zero}


ATTACKED = [f"stress/{attack}/forget/probability" for attack in ("4 bits", "relearned 1 step")]
NGDIFF = ["NGDiff,lr=0.001,seed=0", "NGDiff,lr=0.01,seed=0"]
RUNS = ["start", "retain only", *NGDIFF, "NPO,lr=0.001,seed=0"]


MISTAKES = [
    ("'--evaluation.stress={bit: [4]}'", r"evaluation\.stress has no argument 'bit'; did you mean 'bits'\?"),
    ("'--evaluation.stress={bits: [3]}'", r"evaluation\.stress: bits must be of 4 and 8, got \[3\]"),
    (
        "--methods='[{name: A, class_path: lit_modules.NGDif}]'",
        r"The method 'A': there is no class 'lit_modules\.NGDif'; did you mean 'NGDiff'\?",
    ),
    (
        "--methods='[{name: A, class_path: lit_modules.CausalLMFineTuning}]'",
        r"The method 'A': lit_modules\.CausalLMFineTuning takes no 'accumulate', which the comparison gives to all",
    ),
    ("--methods.NPO.bta=1", r"The method 'NPO': NPO has no argument 'bta'"),
    ("--methods.NPO.accumulate=2", r"The method 'NPO' must leave 'accumulate' to the comparison"),
    ("--methods+ '{name: NPO, class_path: lit_modules.NPO}'", r"methods must have distinct names, got 'NPO' 2 times\."),
    ("--methods+='{name: \"a,b\", class_path: NPO}'", r"must have no dot, comma or equals sign, got"),
    ("--methods=[]", r"methods must name at least one method"),
    ("--seeds=[]", r"The method 'NGDiff' needs at least one of seeds, got none\."),
    ("--learning_rates=[0]", r"learning_rates must be positive and finite, got 0\."),
    ("--learning_rates='[0.1, 0.1]'", r"learning_rates must be distinct, got 0\.1 2 times\."),
    ("--effective_batch=3 --batch_size=2", r"effective_batch must be a multiple of batch_size=2"),
    ("--max_steps=0", r"max_steps must be at least 1, got 0\."),
    ("--max_steps=many", r"max_steps must be int, got 'many'\."),
    ("--optimizer.lr=0.1", r"it belongs into learning_rates, which are compared\."),
    ("--max_step=1", r"There is no argument --max_step; did you mean 'max_steps'\?"),
    ("--start.stepz=1", r"There is no key 'start\.stepz'; did you mean 'start\.steps'\?"),
    ("--methods.NGDif.eps=1", r"There is no 'NGDif' among methods; did you mean 'NGDiff'\?"),
    ("--start.optimizer.lr=1", r"start\.optimizer must be a mapping with a class_path, got"),
    ("--start.epochs=1", r"There is no key 'start\.epochs'"),
    ("--only=NGDif", r"There is no method 'NGDif' for --only; did you mean 'NGDiff'\?"),
    ("stray", r"There is no place for the argument 'stray'"),
    ("--points-per-process=0", r"--points_per_process must be at least 1, got 0\."),
]


@pytest.mark.parametrize(("line", "sentence"), MISTAKES)
def test_mistakes_are_refused_before_anything_runs(line: str, sentence: str, config: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        main(["-c", config, "--folder", "out", *shlex.split(line)], MadeUpLauncher())
    assert not Path("out/runs").exists()


def test_missing_texts_are_named(config: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"There are no texts in the folder nowhere; give --data\.root"):
        main(["-c", config, "--data.root=nowhere"])
    with pytest.raises(UsageError, match=r"There is no configuration file 'tin\.yaml'"):
        main(["-c", "tin.yaml"])
    with pytest.raises(UsageError, match=r"A comparison needs its configuration"):
        main([])


def test_tiny_comparison_and_a_log_of_another_split(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = HereLauncher()
    line = ["-c", config, "--start.steps=40", "--start.optimizer={class_path: AdamW, init_args: {lr: 0.02}}"]
    line.append("--evaluation.stress={bits: [4], relearning_steps: 1, relearning_rate: 0.02}")
    assert main([*line, "--folder=out", "--learning_rates=[0.001]"], first) == 0, capsys.readouterr().out
    assert [name.partition("-")[0] for name in first.names[:2]] == ["start", "retain"]
    assert first.names[2:] == ["start", "retain only", NGDIFF[0], RUNS[-1]]
    paths = [Path("out/runs", name, "results.json") for name in (NGDIFF[0], RUNS[-1])]
    counts = [json.loads(path.read_text())["counts"] for path in paths]
    assert counts[0]["steps"] == 2
    assert counts[0]["rows_per_step"] == {"1": 1, "2": 1}  # an epoch has three rows
    assert counts[0]["forward_passes"] == counts[0]["backward_passes"] == 6  # two sets, a row at a time
    assert counts[0]["forward_passes_without_gradient"] == 0
    assert counts[1]["forward_passes_without_gradient"] > 0  # the reference
    assert counts[0]["retain_tokens_trained"] == counts[0]["retain_tokens"] > 0
    metrics = json.loads(Path("out/runs/retain only/results.json").read_text())["metrics"]
    assert metrics["test/forget_quality"] == 1.0
    tested = [json.loads(Path("out/runs", name, "results.json").read_text())["metrics"] for name in first.names[2:]]
    for numbers in tested:
        probabilities = {numbers[name] for name in ("test/forget/probability", *ATTACKED)}
        assert len(probabilities) == 3
    assert metrics[ATTACKED[1]] > metrics["test/forget/probability"]
    attacked = f"| method | rate | as it is | 4 bits | relearned 1 step |\n{'| --- ' * 5}|\n| (start) | - | "
    assert attacked in Path("out/table.md").read_text(encoding="utf-8")
    with Path("out/results.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["NGDiff", "NPO"]

    models = next(Path("out/models").glob("retain-*"))
    log = json.loads((models / "log.json").read_text(encoding="utf-8"))
    section = log["eval_log_forget.json"]
    log["eval_log_forget.json"] = {name: {"9": values["0"]} for name, values in section.items()}
    Path("other.json").write_text(json.dumps(log), encoding="utf-8")
    other = HereLauncher()
    given = ["--evaluation.metric.retain_log=other.json", "--folder=other", f"--models={models.parent}"]
    assert main([*line, *given], other) == 1
    assert other.names[-1] == "start"  # no method has run
    assert "failed: start: ValueError: The retain log is of another split" in capsys.readouterr().out


def test_lm_eval_is_asked_of_every_model(config: str, harness: Path) -> None:
    arguments = ["-c", config, "--folder=runs", "--only=NGDiff", "--learning_rates=[1e-3]", "--report.columns"]
    line = [*arguments, "[harness/wmdp_cyber]", "--evaluation.harness=[wmdp_cyber]", "--evaluation.harness_limit=3"]
    assert main(line, HereLauncher()) == 0
    results = [json.loads(path.read_text(encoding="utf-8")) for path in Path("runs", "runs").glob("*/results.json")]
    assert [record["metrics"]["harness/wmdp_cyber"] for record in results] == [0.1] * 3
    assert "harness/wmdp_cyber" in Path("runs", "table.md").read_text(encoding="utf-8")


def test_comparison_goes_on_and_grows(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["-c", config, "--folder=out"]
    first = MadeUpLauncher(broken=NGDIFF[1])
    assert main(line, first) == 1
    assert first.names[2:] == RUNS
    said = f"failed: {NGDIFF[1]}: ValueError: It broke. (log: out/runs/{NGDIFF[1]}/log.txt)"
    assert said in capsys.readouterr().out.splitlines()
    failed = json.loads(Path("out/failed.json").read_text(encoding="utf-8"))
    assert failed == {NGDIFF[1]: {"reason": "ValueError: It broke.", "log": f"out/runs/{NGDIFF[1]}/log.txt"}}
    again = MadeUpLauncher()
    assert main(line, again) == 0
    assert again.names == [NGDIFF[1]]
    assert main([*line, "--seeds=[0, 1]", "--only=NGDiff"], again) == 0
    assert again.names[1:] == [name.replace("seed=0", "seed=1") for name in NGDIFF]
    table = Path("out/table.md").read_text(encoding="utf-8")
    assert "| NGDiff | 0.01 | 1 | " in table.partition("All rates")[0]  # the best rate alone, of the other seed
    assert "| NGDiff | 0.01 (best) | 2 | " in table.partition("All rates")[2]
    assert "| NGDiff | 0.001 | 2 | " in table.partition("All rates")[2]
    assert "highest score on its first seed" in table
    assert "| (start) | - | - | - | - | - | 0.9 | 0.8 |" in table
    with Path("out/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["best"] for row in rows] == ["False", "True"]
    assert float(rows[1]["forgotten"]) == pytest.approx((0.105) / 0.8)  # of 0.9 to 0.1
    assert float(rows[1]["test/forget/probability std"]) == pytest.approx(0.01 / 2**0.5)
    for name in ("pareto.png", "rates.png"):
        assert Path("out", name).read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in Path("out/pareto.svg").read_text(encoding="utf-8")
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table("out/results.parquet").num_rows == 4
    for other, sentence in (
        (["--folder=."], r"\. holds something that is no comparison; take another folder\."),
        (["--max_steps=3"], r"out holds a comparison with max_steps=2, got max_steps=3; take another folder\."),
        (["--methods.NGDiff.eps=0.1"], r"holds the run NGDiff,lr=0\.001,seed=0 with no model\.init_args\.eps, got"),
    ):
        with pytest.raises(UsageError, match=sentence):
            main([*line, *other], again)


def results_of(settings: dict[str, Any], failed: Callable[[str], bool]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Runs of the configuration, and made-up results of those that did not fail."""
    runs = runs_of(check_settings(settings))
    records = run_records(settings, runs, "out")
    return runs, {name: made_up(record) for name, record in records.items() if not failed(name)}


def test_a_lone_survivor_does_not_win(tmp_path: Path) -> None:
    """Two of three seeds of the faster rate fail, and the third would have the best score of all."""
    survivor = NGDIFF[1].replace("seed=0", "seed=2")
    settings = configuration() | {"seeds": [0, 1, 2]}
    del settings["methods"][1]
    runs, results = results_of(settings, lambda name: "lr=0.01" in name and name != survivor)
    comparison = compare(settings, runs, results)
    best, _, every = markdown(comparison).partition("All rates")
    assert "| NGDiff | 0.001 | 2 | " in best
    assert "| NGDiff | 0.01 | 1 of 3 | " in every
    (cell,) = comparison.best
    assert (cell.learning_rate, cell.runs, cell.failed) == (0.001, 2, 0)
    forgotten = [(0.01 + 0.01 * seed) / 0.8 for seed in (1, 2)]  # not of the seed that chose the rate
    assert cell.numbers["forgotten"][0] == pytest.approx(sum(forgotten) / 2)
    write(tmp_path, comparison)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = {row["learning_rate"]: row for row in csv.DictReader(file)}
    survived = 0.12 / 0.8
    assert float(rows["0.01"]["forgotten"]) == pytest.approx(survived)
    assert float(rows["0.01"]["score"]) == pytest.approx(2 * survived / (survived + 1) / 3)
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["failed"] for row in csv.DictReader(file)].count("True") == 2


def test_a_method_of_which_nothing_finished_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    settings = configuration()
    runs, results = results_of(settings, lambda name: name.startswith("NGDiff"))
    write(tmp_path, compare(settings, runs, results))
    best, _, every = (tmp_path / "table.md").read_text(encoding="utf-8").partition("All rates")
    assert "| NGDiff | - | 0 of 2 | 0 +- 0 | - | - | - | - |" in best
    assert "chosen and\nreported on the same run" in best
    assert "| NGDiff | 0.001 | 0 of 1 | 0 | - | - | - | - |" in every
    assert 'needs pyarrow, which is not installed: pip install "lit-modules[parquet]".' in capsys.readouterr().out
    assert (tmp_path / "results.csv").exists()
    assert not (tmp_path / "results.parquet").exists()


@pytest.mark.parametrize(
    ("spent", "sentence"),
    [
        ({"steps": 1}, r"b took 1 optimizer steps, and the comparison asks for 2 of each run"),
        ({"rows_per_step": {"4": 2}}, r"b took steps of 4 forget rows, and the effective batch is 2"),
        ({"forget_tokens": 51}, r"target tokens of the forget set differ: a has 50, b 51\."),
        ({"rows_per_step": {"1": 2}}, r"forget rows per step \(rows: steps\) differ: a has .*'2': 2.*'1': 2"),
    ],
)
def test_unequal_spending_is_an_error(spent: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_spending({"a": spending(), "b": spending() | spent}, {"a": 0, "b": 0}, 2, 2)


def test_seeds_may_differ_in_tokens_and_not_in_rows() -> None:
    check_spending({"a": spending(), "b": spending() | {"forget_tokens": 60}}, {"a": 0, "b": 1}, 2, 2)
    with pytest.raises(ValueError, match=r"Runs of all seeds must see as many forget rows, got \{0: 4, 1: 5\}"):
        check_spending({"a": spending(), "b": spending() | {"forget_rows": 5}}, {"a": 0, "b": 1}, 2, 2)


def test_a_report_needs_what_it_reports() -> None:
    settings = configuration()
    runs, results = results_of(settings, lambda name: False)
    settings["report"] = {**REPORT, "columns": ["test/forget/probabilty"]}
    with pytest.raises(UsageError, match=r"There is no number 'test/forget/probabilty' for the report; did you mean"):
        compare(settings, runs, results)
    results["start"]["metrics"][REPORT["forget"]] = 0.1
    with pytest.raises(ValueError, match=r"is 0\.1 and 0\.1; train the start for more steps \(start\.steps\)\."):
        compare({**settings, "report": REPORT}, runs, results)
    results[NGDIFF[1]]["counts"]["steps"] = 1
    with pytest.raises(ValueError, match="took 1 optimizer steps"):
        compare({**settings, "report": REPORT}, runs, results)


def test_published_numbers_stand_beside_those_of_the_same_model_and_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = configuration()
    runs, results = results_of(settings, lambda name: False)
    for name, record in results.items():
        record["metrics"] |= {"test/forget_quality": 0.5 if name in runs else 1.0, "test/model_utility": None}
    assert compare(settings, runs, results).published is None  # a start of its own
    settings["start"]["model"] = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
    comparison = compare(settings, runs, results)
    assert comparison.published is not None
    rows = {row[0]: row[1:] for row in comparison.published[0]}
    assert rows["ours / published"] == ["forget_quality", "model_utility", "forget/truth_ratio"]
    assert rows["start"] == ["1 / 1.66e-21", "- / 0.6", "- / 0.48"]
    assert rows["NPO"] == ["0.5 / 0.02", "- / 0.46", "- / 0.7"]
    assert "NGDiff" not in rows  # of which nobody has published any
    assert "0.5 / 0.02" in markdown(comparison)
    print_best(comparison)
    printed = " ".join(capsys.readouterr().out.split())
    assert "docs/repro.md (https://github.com/locuslab/open-unlearning, MIT), read 2026-11-28; not tuned" in printed
    settings["data"]["init_args"]["split"] = "forget01"
    assert "0.5 / 0.92" in markdown(compare(settings, runs, results))
    settings["start"]["model"] = "runs/mine"
    assert compare(settings, runs, results).published is None
    named = {**settings, "report": {**REPORT, "published": "Llama-2-7b-hf-chat"}}
    assert "0.5 / 0.4" in markdown(compare(named, runs, results))
    with pytest.raises(UsageError, match="no published numbers of 'Llama-2-7b'; did you mean 'Llama-2-7b-hf-chat'"):
        compare({**settings, "report": {**REPORT, "published": "Llama-2-7b"}}, runs, results)
    muse = {"class_path": "MUSE", "init_args": {"root": "data/muse/books"}}
    books = {**settings, "data": muse, "start": {**settings["start"], "model": "muse-bench/MUSE-Books_target"}}
    published = find_published(books)
    assert published is not None
    assert published.title.endswith("Books")
    assert published.numbers["retain only"] == pytest.approx(
        {"test/forget/knowmem": 30, "test/forget/verbmem": 14, "test/privleak": 0, "test/retain/knowmem": 69}
    )


def test_the_copy_of_published_numbers_is_the_source(data_folder: Path) -> None:
    source = data_folder / "references" / "unlearning_results.csv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = json.loads((ROOT / "lit_modules/studies/compare/data/published.json").read_text(encoding="utf-8"))["tables"]
    keys = ("benchmark", "model", "split", "method", "metric")
    for row in rows:
        value: Any = own
        for key in keys:
            value = value[row[key]]
        assert value == float(row["value"])
    count = sum(
        len(m) for models in own.values() for splits in models.values() for s in splits.values() for m in s.values()
    )
    assert count == len(rows)


def test_runs_of_wandb_have_a_group() -> None:
    settings = configuration()
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "offline": True}}
    settings["trainer"]["logger"] = logger
    records = run_records(settings, runs_of(check_settings(settings)), "out")
    init_args = records[RUNS[-1]]["config"]["trainer"]["logger"]["init_args"]
    assert init_args == {"group": "out", "name": RUNS[-1], "project": "p", "offline": True}


OTHERS = ("lume_rates", "lume_tiny", "tofu_normalised", "tofu_rates")
SHIPPED = ["tofu_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_comparisons_are_whole(
    name: str, data_folder: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_MODULES_DATA", str(data_folder))
    if not (data_folder / name.partition("_")[0]).is_dir():
        pytest.skip("no such texts")
    recipe = yaml.safe_load(find_recipe(f"compare/{name}.yaml").read_text(encoding="utf-8"))
    recipe["report"] = {key: recipe["report"][key] for key in REPORT}
    Path(config).write_text(yaml.safe_dump(recipe), encoding="utf-8")

    class Stop(HereLauncher):
        def run(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
            raise KeyboardInterrupt
            yield

    assert main(["-c", config, "--folder=out"], Stop()) == 130  # every argument was read, nothing has run


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_killed_comparison_repeats_no_finished_run(config: str) -> None:
    line = [sys.executable, "-m", "lit_modules", "compare", "-c", config, "--folder=out", "--workers=1"]
    line += ["--points-per-process=8", "--start.steps=60", "--seeds=[0, 1, 2]"]
    line += ["--start.optimizer={class_path: AdamW, init_args: {lr: 0.02}}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    wanted = Path("out/runs", NGDIFF[0], "results.json")
    until = time.monotonic() + 600  # a busy machine starts a process in a minute
    while not wanted.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("results.json")}
    assert wanted in before
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(Path("out/runs").glob("*/results.json"))) == 11
