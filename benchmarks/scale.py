"""Growth of costs with the size of the work: rows, encodings, pictures, points of a sweep, models and images.

    python benchmarks/scale.py                # all parts
    python benchmarks/scale.py --part cache   # one of them

Each part does its work at two or more sizes, each size in a fresh process, and prints seconds of the processor and the
largest resident memory, per item, and what they come to at a size that is too large to run here. A cost that grows
with its work has equal figures per item at all sizes.

- ``rows``: a forget set and a retain set of that many rows in the layout of LUME, set up, and batches of 8 of each.
- ``cache``: that many encodings written, found again by a new process, and read at random within 64 MiB.
- ``store``: a CoDA run of that many pictures with models that answer by rules, then the finished store again.
- ``sweep``: that many points of a sweep on Ray, sixteen at a time, each a fresh process and a short run of
  ``pgd/digits.yaml``; seconds of the wall.
- ``evaluation``: tokens per second of a Llama of 15 M and 100 M parameters, in generation and in scoring; times for 1 B
  and 7 B follow from two operations per parameter and token, at the rate that was reached.
- ``images``: passes of torchvision's ResNet-50 (random weights, 224 pixels, 1000 classes) under APGD and Square, at
  several batch sizes; AutoAttack's time follows from its passes for an image that withstands it.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch

Figures = dict[str, float]
MIB = 2**20


def rows(size: int, folder: Path) -> Figures:
    """Set up a datamodule of that many rows of each set, and draw batches."""
    from transformers import PreTrainedTokenizerFast

    from datamodules import LUME
    from lit_modules.networks.tiny_clip import byte_level_bpe

    words = [f"word{number}" for number in range(1000)]
    random = Random(0)
    for name in ("forget", "retain"):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(size):
                text = " ".join(random.choices(words, k=30))
                row = {"id": f"{name}{number}sc1", "input": text[:100], "output": text[100:], "task": "Task1"}
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
    for _ in range(100):
        next(batches)
    drawn = time.process_time() - began
    return {"set up": set_up / (2 * size), "first batch": ordered / (2 * size), "later batches": drawn / 100}


def cache(size: int, folder: Path) -> Figures:
    """Write encodings, and read some of them anew."""
    from lit_modules.synthia.core.encodings import EncodingCache, text_key

    keys = [text_key("scale", str(number)) for number in range(size)]
    store = EncodingCache(str(folder), memory_bytes=64 * MIB)
    began = time.process_time()
    for start in range(0, size, 1000):
        store.get_many(keys[start : start + 1000], lambda missing: [{"x": torch.ones(4, 32)} for _ in missing])
    written = time.process_time() - began
    again = EncodingCache(str(folder), memory_bytes=64 * MIB)
    drawn = Random(0).choices(keys, k=5000)
    began = time.process_time()
    for start in range(0, len(drawn), 100):
        again.get_many(drawn[start : start + 100], _refuse)
    return {"write": written / size, "read": (time.process_time() - began) / len(drawn)}


def _refuse(missing: list[int]) -> Any:
    raise RuntimeError(f"{len(missing)} encodings of the finished cache were not found.")


def store(size: int, folder: Path) -> Figures:
    """Make that many pictures, 25 for each concept of a pair, and go through the finished store."""
    from coda_models import save_clip
    from coda_runs import CountingEmbedder, RuleChat, RuleGenerator, tasks

    from lit_modules.coda import CoDAPipeline, Store, preset

    settings = preset(num_images=25, width=32, height=32, trials_per_group=5, allow_short=True)
    save_clip(str(folder / "clip"))
    pairs = tasks(folder, size // 50, 2)
    times = []
    for _ in range(2):
        began = time.process_time()
        with Store(folder / "store") as run:
            models = RuleChat(), RuleGenerator(), CountingEmbedder(str(folder / "clip"))
            result = CoDAPipeline(run, settings, *models).run(pairs)
        if result.failures or result.stopped:
            raise RuntimeError(f"The run did not come to its end: {result.stopped or result.failures[0].failure}")
        times.append(time.process_time() - began)
    return {"first run": times[0] / size, "finished": times[1] / size}


def sweep(size: int, folder: Path) -> Figures:
    """Run that many points on Ray, sixteen at a time."""
    import ray

    from lit_modules.cli import main

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.limit_test_batches=1"]
    quick = {"class_path": "lit_modules.attacks.FGSM", "init_args": {"eps": 0.1}}
    attacks = [f"--model.test_attacks={json.dumps({'fgsm': quick})}", "--data.eval_batch_size=20"]
    launch = ["--launcher", "ray", "--folder", str(folder / "sweep"), "--seeds", str(size)]
    began = time.perf_counter()
    main(["sweep", "-c", "pgd/digits.yaml", *short, *attacks, *launch])
    return {"point": (time.perf_counter() - began) / size}


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
    greedy_generate(model, prompts, mask, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    generated = time.process_time() - began
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
    for name, attack, passes in (
        ("APGD pass", APGD(eps=1e-7, steps=4, loss="cross_entropy"), 4),
        ("Square pass", Square(eps=1e-7, queries=12), 12),
    ):
        began = time.process_time()
        attack(model, x, y)
        figures[name] = (time.process_time() - began) / (size * passes)
    return figures


PARTS: dict[str, tuple[Callable[[int, Path], Figures], list[int], int]] = {
    "rows": (rows, [2_000, 20_000, 100_000], 5_000_000),
    "cache": (cache, [10_000, 100_000], 1_000_000),
    "store": (store, [500, 5_000], 100_000),
    "sweep": (sweep, [16, 48], 1000),
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


def measure(part: str, size: int, threads: int) -> tuple[Figures, float]:
    """Run a part at one size in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=child, args=(part, size, threads, results))
    process.start()
    while process.is_alive() and results.empty():
        time.sleep(0.2)
    if results.empty():
        raise RuntimeError(f"The part {part} failed at size {size}, see above.")
    found: tuple[Figures, float] = results.get()
    process.join()
    return found


def report(part: str, threads: int) -> None:
    """Print the figures of a part at all its sizes, and what follows from them."""
    _, sizes, target = PARTS[part]
    figures: dict[int, Figures] = {}
    print(f"\n{part}\n\n| size | figure | per item | memory, MiB |\n| --- | --- | --- | --- |", flush=True)
    for size in sizes:
        figures[size], memory = measure(part, size, threads)
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


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="part to run; all by default")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, torch {torch.__version__}, {arguments.threads} thread(s)")
    for part in arguments.part or PARTS:
        report(part, arguments.threads)


if __name__ == "__main__":
    main()
