"""Growth of costs with the size of the work: rows, encodings, pictures, points of a sweep, models and images.

    python benchmarks/scale.py                # all parts
    python benchmarks/scale.py --part cache   # one of them

Each part does its work at two or more sizes, each size in a fresh process, and prints seconds of the processor and the
largest resident memory, per item, and what they come to at a size that is too large to run here. A cost that grows
with its work has equal figures per item at all sizes. A part whose result is void, as what it read is not what it
wrote, has no figures, and the exit code is 1.

- ``rows``: a forget set and a retain set of that many rows in the layout of LUME, set up, and batches of 8 of each.
- ``cache``: that many encodings written, found again by a new process, and read at random within 64 MiB.
- ``store``: a CoDA run of that many pictures with models that answer by rules, then the finished store again.
- ``sweep``: a sweep of that many points that a launcher marks as finished, then the finished sweep again; and that
  many empty processes on Ray, sixteen at a time: what a point costs beyond its run.
- ``points``: that many points of a sweep on Ray, sixteen at a time, each a short run of ``pgd/digits.yaml``: in a fresh
  process each, and eight in a process; Ray and all processes together.
- ``evaluation``: tokens per second of a Llama of 15 M and 100 M parameters, in generation and in scoring; times for 1 B
  and 7 B follow from two operations per parameter and token, at the rate that was reached.
- ``images``: passes of torchvision's ResNet-50 (random weights, 224 pixels, 1000 classes) under APGD and Square, at
  several batch sizes; AutoAttack's time follows from its passes for an image that withstands it.
"""

import argparse
import io
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lit_modules.studies.launchers import Outcome, Task

Figures = dict[str, float]
MIB = 2**20


class Void(RuntimeError):
    """The work was not done as it was meant, so its cost says nothing."""


def check(condition: bool, problem: str) -> None:
    """Refuse figures of work that was not done as it was meant."""
    if not condition:
        raise Void(problem)


def rows(size: int, folder: Path) -> Figures:
    """Set up a datamodule of that many rows of each set, and draw batches."""
    from transformers import PreTrainedTokenizerFast

    from datamodules import LUME
    from lit_modules.networks.tiny_clip import byte_level_bpe

    words = [f"word{number}" for number in range(1000)]
    random = Random(0)
    texts: dict[str, str] = {}
    for name in ("forget", "retain"):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(size):
                text = " ".join(random.choices(words, k=30))
                row = {"id": f"{name}{number}sc1", "input": text[:100], "output": text[100:], "task": "Task1"}
                if number % (size // 1000) == 0:
                    texts[row["id"]] = f"{text[:100]} {text[100:]}"
                file.write(json.dumps(row) + "\n")
    began = time.process_time()
    trained = byte_level_bpe([" ".join(words)], ["<s>", "</s>"], vocab_size=600, add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")
    data = LUME(tokenizer, root=str(folder), batch_size=8, num_workers=0)
    data.setup("fit")
    set_up = time.process_time() - began
    began = time.process_time()
    batches = iter(data.train_dataloader())
    next(batches)
    ordered = time.process_time() - began
    began = time.process_time()
    later = [next(batches) for _ in range(100)]
    drawn = time.process_time() - began
    read = {
        name: tokenizer.decode(ids, skip_special_tokens=True)
        for batch in later
        for task in batch.values()
        for name, ids in zip(task["id"], task["input_ids"], strict=True)
    }
    check(len(read) == 1600, f"100 batches of 2 x 8 rows held {len(read)} rows.")
    for name in read.keys() & texts.keys():
        check(read[name] == texts[name], f"{name} was read as {read[name]!r}, and written as {texts[name]!r}.")
    return {"set up": set_up / (2 * size), "first batch": ordered / (2 * size), "later batches": drawn / 100}


def cache(size: int, folder: Path) -> Figures:
    """Write encodings, and read some of them anew."""
    from lit_modules.synthia.core.encodings import EncodingCache, text_key

    keys = [text_key("scale", str(number)) for number in range(size)]
    store = EncodingCache(str(folder), memory_bytes=64 * MIB)
    began = time.process_time()
    for start in range(0, size, 1000):
        block = keys[start : start + 1000]
        store.get_many(block, lambda missing, first=start: [{"x": torch.full((4, 32), first + i)} for i in missing])
    written = time.process_time() - began
    again = EncodingCache(str(folder), memory_bytes=64 * MIB)
    drawn = Random(0).choices(range(size), k=5000)
    found: list[int] = []
    began = time.process_time()
    for start in range(0, len(drawn), 100):
        rows = again.get_many([keys[number] for number in drawn[start : start + 100]], _refuse)
        found += [int(row["x"][3, 31]) for row in rows]
    read = time.process_time() - began
    check(found == drawn, "The encodings that were read are not those that were written.")
    return {"write": written / size, "read": read / len(drawn)}


def _refuse(missing: list[int]) -> Any:
    raise Void(f"{len(missing)} encodings of the finished cache were not found.")


def store(size: int, folder: Path) -> Figures:
    """Make that many pictures, 25 for each concept of a pair and kind of features; go through the finished store."""
    from coda_models import save_clip
    from coda_runs import CountingEmbedder, RuleChat, RuleGenerator, tasks

    from lit_modules.coda import CoDAPipeline, Store, preset

    settings = preset(num_images=25, width=96, height=96, trials_per_group=5)
    save_clip(str(folder / "clip"))
    pairs = tasks(folder, size // (2 * 25 * len(settings.kinds)), 2)
    times = []
    for _ in range(2):
        began = time.process_time()
        with Store(folder / "store") as run:
            models = RuleChat(), RuleGenerator(), CountingEmbedder(str(folder / "clip"))
            result = CoDAPipeline(run, settings, *models).run(pairs)
        times.append(time.process_time() - began)
        check(not result.stopped and not result.failures, f"The run did not come to its end: {result}")
    used = models[0].calls, models[1].images, models[2].shown.total(), models[2].read.total()
    check(not any(used), f"Going through the finished store took {used} calls, pictures and embeddings.")
    accepted = sum(unit.accepted for unit in result.units)
    check(accepted == size, f"{accepted} pictures were accepted, of {size}.")
    return {"first run": times[0] / size, "finished": times[1] / size}


class FinishedLauncher:
    """Marks runs as finished without running them, and counts them."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, tasks: Sequence["Task"]) -> Generator["Outcome", None, None]:
        """Write the results of each run."""
        from lit_modules.studies.launchers import RESULTS, Outcome

        for task in tasks:
            numbers = {"test/accuracy": 0.5, "test/robust_accuracy/linf": self.runs / len(tasks)}
            Path(task.arguments[-1], RESULTS).write_text(json.dumps({"values": {}, "metrics": numbers}))
            self.runs += 1
            yield Outcome(task.name, 0)


def sweep(size: int, folder: Path) -> Figures:
    """Read, record and report that many points without their runs; start that many empty processes on Ray."""
    import ray

    from lit_modules.studies.launchers import RayLauncher, Task
    from lit_modules.studies.sweep.command import main

    values = ",".join(map(str, range(1, size // 8 + 1)))
    axes = ["--over", "trainer.max_epochs=1,2", "--over", f"trainer.gradient_clip_val={values}", "--seeds", "4"]
    line = ["-c", "pgd/digits.yaml", *axes, "--folder", str(folder / "sweep")]
    times = []
    for expected in (size, 0):
        launcher = FinishedLauncher()
        began = time.process_time()
        with redirect_stdout(io.StringIO()):
            check(main(line, launcher) == 0, "A point failed.")
        times.append(time.process_time() - began)
        check(launcher.runs == expected, f"{launcher.runs} points ran, and {expected} were missing.")
    start_ray()
    tasks = [Task(str(number), ("-c", "pass"), folder / str(number) / "log.txt") for number in range(size)]
    before = processor_time()
    codes = [outcome.exit_code for outcome in RayLauncher().run(tasks)]
    empty = processor_time() - before
    check(codes == [0] * size, "An empty process on Ray failed.")
    ray.shutdown()
    return {"new point": times[0] / size, "finished point": times[1] / size, "empty process on Ray": empty / size}


def points(size: int, folder: Path) -> Figures:
    """Run that many points on Ray."""
    import ray

    from lit_modules.studies.sweep.command import main

    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.limit_test_batches=1"]
    quick = {"class_path": "lit_modules.attacks.FGSM", "init_args": {"eps": 0.1}}
    attacks = [f"--model.test_attacks={json.dumps({'fgsm': quick})}", "--data.eval_batch_size=20"]
    figures, tables = {}, []
    start_ray()
    for name, together in (("point, a process each", 1), ("point, eight in a process", 8)):
        options = ["--launcher", "ray", "--points_per_process", str(together), "--seeds", str(size)]
        before = processor_time()
        code = main(["-c", "pgd/digits.yaml", *short, *attacks, *options, "--folder", str(folder / name)])
        figures[name] = (processor_time() - before) / size
        check(code == 0, "A point failed.")
        tables.append((folder / name / "table.csv").read_text())
    ray.shutdown()
    check(tables[0] == tables[1], "Points that share a process have other results.")
    return figures


def start_ray() -> None:
    """Start Ray with sixteen workers, whatever the cores."""
    import ray

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)


def processor_time() -> float:
    """Return the processor time of this process, of those below it, and of those that these have waited for."""
    from psutil import Process

    own = Process()
    return sum(sum(process.cpu_times()[:4]) for process in (own, *own.children(recursive=True)))


def evaluation(size: int, folder: Path) -> Figures:
    """Generate and score with a Llama of about that many million parameters."""
    from lit_modules.networks import small_llama
    from lit_modules.unlearning.core.generation import greedy_generate

    shapes = {15: (384, 6), 100: (768, 12)}
    width, layers = shapes[size]
    model = small_llama(8192, hidden_size=width, num_layers=layers, num_heads=12, eos_token_id=None).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    prompts = torch.randint(1, 8192, (16, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompts)
    began = time.process_time()
    answers = greedy_generate(model, prompts, mask, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    generated = time.process_time() - began
    check(sum(map(len, answers)) == prompts.numel(), "Fewer tokens were generated than asked for.")
    began = time.process_time()
    with torch.no_grad():
        for _ in range(2):
            model(input_ids=prompts, attention_mask=mask)
    scored = time.process_time() - began
    tokens = prompts.numel()
    return {
        "parameters": float(count),
        "generated token": generated / tokens,
        "scored token": scored / (2 * tokens),
        "operations per second, scoring": 2 * count * 2 * tokens / scored,
        "operations per second, generation": 2 * count * 2 * tokens / generated,
    }


def images(size: int, folder: Path) -> Figures:
    """Attack a batch of that many images of ImageNet's size."""
    from torchvision.models import resnet50

    from lit_modules.attacks import APGD, Square

    torch.manual_seed(0)
    model = resnet50().eval()
    x = torch.rand(size, 3, 224, 224)
    with torch.no_grad():
        y = model(x).argmax(1)
    figures = {}
    made: list[bool] = []  # for each forward pass, whether with gradient
    model.register_forward_pre_hook(lambda *_: made.append(torch.is_grad_enabled()))
    for name, attack, passes in (
        ("APGD pass", APGD(eps=1e-7, steps=4, loss="cross_entropy"), 4),
        ("Square pass", Square(eps=1e-7, queries=12), 12),
    ):
        made.clear()
        began = time.process_time()
        attack(model, x, y)
        figures[name] = (time.process_time() - began) / (size * passes)
        done = made.count(name == "APGD pass")
        check(done >= passes, f"{name}: {done} passes, and {passes} were meant.")
    return figures


PARTS: dict[str, tuple[Callable[[int, Path], Figures], list[int], int]] = {
    "rows": (rows, [2_000, 100_000, 500_000], 5_000_000),
    "cache": (cache, [10_000, 100_000], 1_000_000),
    "store": (store, [300, 3_000], 100_000),
    "sweep": (sweep, [104, 1_000], 1_000),
    "points": (points, [16, 32], 1_000),
    "evaluation": (evaluation, [15, 100], 7000),
    "images": (images, [1, 2, 4, 8], 50_000),
}
"""Work of each part, the sizes at which it runs, and the size to which it is extrapolated."""


def child(part: str, size: int, threads: int, results: Any) -> None:
    """Run a part at one size, and send back its figures and the memory that it took beyond the imports, in MiB."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures = PARTS[part][0](size, Path(folder))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((figures, (after - before) / 1024))


def measure(part: str, size: int, threads: int) -> tuple[Figures, float] | None:
    """Run a part at one size in a fresh process; return ``None`` if it failed."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=child, args=(part, size, threads, results))
    process.start()
    while process.is_alive() and results.empty():
        time.sleep(0.2)
    if results.empty():
        return None
    found: tuple[Figures, float] = results.get()
    process.join()
    return found


def report(part: str, threads: int) -> bool:
    """Print the figures of a part at all its sizes, and what follows from them; return whether none is void."""
    _, sizes, target = PARTS[part]
    figures: dict[int, Figures] = {}
    print(f"\n{part}\n\n| size | figure | per item | memory, MiB |\n| --- | --- | --- | --- |", flush=True)
    for size in sizes:
        measured = measure(part, size, threads)
        if measured is None:
            print(f"| {size} | void, see above | | |", flush=True)
            return False
        figures[size], memory = measured
        for name, value in figures[size].items():
            shown = f"{value:.3g}" if "operations" in name or name == "parameters" else f"{1000 * value:.3g} ms"
            print(f"| {size} | {name} | {shown} | {memory:.0f} |", flush=True)
    first, last = figures[sizes[0]], figures[sizes[-1]]
    if part == "evaluation":
        for billions in (1, 7):
            for kind in ("generation", "scoring"):
                seconds = 2e9 * billions / last[f"operations per second, {kind}"]
                print(f"{billions} B, {kind}: {seconds:.2f} s a token")
    elif part == "images":
        passes = {"APGD pass": 100 + 9 * 100 + 9 * 100, "Square pass": 5000}
        seconds = sum(last[name] * count for name, count in passes.items())
        print(f"AutoAttack on an image that withstands it: about {seconds / 60:.0f} minutes of one core")
    else:
        for name, value in last.items():
            grows = f"per item {value / first[name]:.2f} times that of size {sizes[0]}"
            print(f"{name}: {grows}; {target} items: {value * target / 3600:.2f} h")
    return True


def main() -> int:
    """Run the parts that were asked for; return 1 if one is void."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="part to run; all by default")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}, {arguments.threads} thread(s)")
    sound = [report(part, arguments.threads) for part in arguments.part or PARTS]
    return int(not all(sound))


if __name__ == "__main__":
    sys.exit(main())
