"""NGDiff, GDiff and GA as modules: what a step does, and what it must not depend on."""

import math
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig

from lit_modules.unlearning.core.causal_lm import CausalLM
from lit_modules.unlearning.core.gradient_pair import Unlearning
from lit_modules.unlearning.core.losses import summed_nll, target_tokens
from lit_modules.unlearning.core.pretrained import load_causal_lm
from lit_modules.unlearning.fine_tuning import CausalLMFineTuning
from lit_modules.unlearning.gradient_ascent import GradientAscent
from lit_modules.unlearning.gradient_difference import GradientDifference
from lit_modules.unlearning.ngdiff import NGDiff
from tests.unlearning.conftest import normalised_difference

METHODS = [NGDiff, GradientDifference, GradientAscent]
Optimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def reference_gradients(network: Any, pair: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = {}
    for task in ("forget", "retain"):
        loss = summed_nll(network, pair[task]) / target_tokens(pair[task])
        gradients[task] = list(torch.autograd.grad(loss, parameters))
    return gradients


def test_loss_is_the_models_own(bench: Any) -> None:
    network = bench.network()
    batch = bench.forget
    own = summed_nll(network, batch) / target_tokens(batch)
    theirs = network(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
    assert own.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_step_moves_along_the_normalised_difference(bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    before = bench.vector(network)
    gradients = reference_gradients(network, bench.pairs(24)[0])
    trainer = bench.fit(NGDiff(network, optimizer=sgd), bench.pairs(24))
    direction = torch.cat(
        [t.flatten() for t in normalised_difference(gradients["retain"], gradients["forget"]) if t is not None]
    )
    torch.testing.assert_close(bench.vector(network), before - 0.01 * direction, atol=1e-7, rtol=0)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["train/retain_descent"] == pytest.approx(
        logged["train/retain_norm"] * (1 - logged["train/cosine"]), rel=1e-4
    )
    assert logged["train/forget_descent"] == pytest.approx(
        -logged["train/forget_norm"] * (1 - logged["train/cosine"]), rel=1e-4
    )
    assert {"train/forget_loss", "train/retain_loss", "train/lr"} <= logged.keys()


def test_gradient_difference_and_ascent_move_along_their_formulas(bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    before = bench.vector(network)
    gradients = reference_gradients(network, bench.pairs(24)[0])
    retain, forget = (torch.cat([t.flatten() for t in gradients[task]]) for task in ("retain", "forget"))
    bench.fit(GradientDifference(network, retain_weight=0.5, forget_weight=2.0, optimizer=sgd), bench.pairs(24))
    torch.testing.assert_close(bench.vector(network), before - 0.01 * (0.5 * retain - 2 * forget), atol=1e-7, rtol=0)
    network = bench.network()
    bench.fit(GradientAscent(network, optimizer=sgd), bench.pairs(24))
    torch.testing.assert_close(bench.vector(network), before + 0.01 * forget, atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(method: type[Unlearning], bench: Any) -> None:
    results = []
    for size, accumulate in ((8, 1), (4, 2), (2, 4), (1, 8)):
        network = bench.network()
        trainer = bench.fit(method(network, accumulate=accumulate, optimizer=adamw), bench.pairs(size))
        assert trainer.global_step == 3
        results.append(bench.vector(network))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=2e-5, rtol=0)


def test_incomplete_last_group_still_steps(bench: Any) -> None:
    assert bench.fit(NGDiff(bench.network(), accumulate=5), bench.pairs(4)).global_step == 2


def test_scaling_both_losses_changes_nothing_and_swapping_negates(bench: Any, sgd: Optimizer) -> None:
    class Scaled(NGDiff):
        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> torch.Tensor:
            loss = super().accumulate_gradient(group, task, scale)
            for parameter in self.trainable_parameters():
                assert parameter.grad is not None
                parameter.grad.mul_({"forget": 1e3, "retain": 1e-2}[task])
            return loss

    moves = []
    for method, data in (
        (NGDiff, bench.pairs(24)),
        (Scaled, bench.pairs(24)),
        (NGDiff, [{"forget": p["retain"], "retain": p["forget"]} for p in bench.pairs(24)]),
    ):
        network = bench.network()
        before = bench.vector(network)
        bench.fit(method(network, optimizer=sgd), data)
        moves.append(bench.vector(network) - before)
    torch.testing.assert_close(moves[1], moves[0], atol=1e-7, rtol=0)
    torch.testing.assert_close(moves[2], -moves[0], atol=1e-7, rtol=0)


def test_forget_loss_rises_and_retain_loss_falls(bench: Any) -> None:
    trainer = bench.fit(NGDiff(bench.network(), optimizer=adamw), bench.pairs(24) * 30)
    assert float(trainer.callback_metrics["train/forget_loss"]) > math.log(64) + 0.5
    assert float(trainer.callback_metrics["train/retain_loss"]) < math.log(64) - 0.5


@pytest.mark.parametrize(("buffer", "tolerance"), [("device", 0.0), ("cpu", 0.0), ("bfloat16", 1e-3)])
def test_buffers_agree_and_are_freed(buffer: Any, tolerance: float, bench: Any, sgd: Optimizer) -> None:
    alive: list[Any] = []

    class Watched(NGDiff):
        def buffered(self, gradient: Any) -> Any:
            kept = super().buffered(gradient)
            alive.extend(weakref.ref(tensor) for tensor in kept if tensor is not None)
            return kept

        def on_train_batch_end(self, *arguments: Any) -> None:
            assert alive
            assert all(reference() is None for reference in alive)
            assert all(parameter.grad is None for parameter in self.parameters())

    reference, network = bench.network(), bench.network()
    bench.fit(NGDiff(reference, optimizer=sgd), bench.pairs(8))
    bench.fit(Watched(network, buffer=buffer, optimizer=sgd), bench.pairs(8))
    torch.testing.assert_close(bench.vector(network), bench.vector(reference), atol=tolerance, rtol=0)


@pytest.mark.parametrize("method", [*METHODS, CausalLMFineTuning])
def test_lora_trains_adapters_only_and_saves_them_alone(method: type[CausalLM], bench: Any, tmp_path: Path) -> None:
    network = bench.network()
    frozen = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    module = method(network, peft_config=lora, optimizer=adamw)
    data = [pair["forget"] for pair in bench.pairs(8)] if method is CausalLMFineTuning else bench.pairs(8)
    trainer = bench.fit(module, data)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    for name, parameter in network.named_parameters():
        clean = name.replace(".base_layer", "")
        if clean in frozen:
            assert torch.equal(parameter, frozen[clean])
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    saved = torch.load(tmp_path / "lora.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if name.startswith("model.")} == set(names)
    module.save_pretrained(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    module.save_pretrained(str(tmp_path / "merged"), merge=True)
    assert all(torch.equal(before[name], parameter) for name, parameter in module.named_parameters())
    inputs = {key: bench.forget[key] for key in ("input_ids", "attention_mask")}
    merged = load_causal_lm(str(tmp_path / "merged")).eval()(**inputs).logits
    torch.testing.assert_close(merged, module.model.eval()(**inputs).logits, atol=1e-4, rtol=0)


def test_gradient_checkpointing_gives_the_same_step(bench: Any, sgd: Optimizer) -> None:
    plain, checkpointed = bench.network(), bench.network()
    bench.fit(NGDiff(plain, optimizer=sgd), bench.pairs(24))
    bench.fit(NGDiff(checkpointed, optimizer=sgd, gradient_checkpointing=True), bench.pairs(24))
    torch.testing.assert_close(bench.vector(checkpointed), bench.vector(plain), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_network_gives_the_same_step(
    backend: str, bench: Any, sgd: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the default backend calls a C++ compiler for most of a minute; what is ours is that steps run what was compiled
    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    plain, compiled = bench.network(), bench.network()
    bench.fit(NGDiff(plain, optimizer=sgd), bench.pairs(24))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    bench.fit(NGDiff(compiled, optimizer=sgd, compile=True), bench.pairs(24))
    assert len(graphs) == 1
    torch.testing.assert_close(bench.vector(compiled), bench.vector(plain), atol=1e-6, rtol=0)


def test_bfloat16_mixed_trains_with_float32_weights(bench: Any) -> None:
    network = bench.network()
    bench.fit(NGDiff(network, optimizer=adamw), bench.pairs(8), precision="bf16-mixed")
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_clip_norm_clips_and_warns_below_two(bench: Any, sgd: Optimizer) -> None:
    network = bench.network()
    before = bench.vector(network)
    with pytest.warns(UserWarning, match="whose norm .* is at most 2"):
        module = NGDiff(network, clip_norm=0.5, optimizer=sgd)
    bench.fit(module, bench.pairs(24))
    assert (bench.vector(network) - before).norm().item() == pytest.approx(0.005, rel=1e-3)


def test_scheduler_moves_once_per_optimizer_step(bench: Any, sgd: Optimizer) -> None:
    module = NGDiff(
        bench.network(), accumulate=2, optimizer=sgd, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)
    )
    trainer = bench.fit(module, bench.pairs(4))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**3)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_run_equals_the_whole(method: type[Unlearning], bench: Any, tmp_path: Path) -> None:
    def module(network: Any) -> Unlearning:
        return method(
            network, accumulate=2, optimizer=adamw, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)
        )

    whole = bench.network()
    bench.fit(module(whole), bench.pairs(4), max_epochs=4)
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    bench.fit(module(bench.network()), bench.pairs(4), [saver], max_epochs=2, enable_checkpointing=True)
    resumed = bench.network(seed=5)
    trainer = bench.trainer(max_epochs=4)
    trainer.fit(module(resumed), bench.loader(bench.pairs(4)), ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert trainer.global_step == 12
    assert torch.equal(bench.vector(resumed), bench.vector(whole))


def test_checkpoint_of_another_method_is_refused(bench: Any, tmp_path: Path) -> None:
    bench.fit(GradientDifference(bench.network()), bench.pairs(8)).save_checkpoint(tmp_path / "gdiff.ckpt")
    with pytest.raises(ValueError, match="written by GradientDifference, and this run trains NGDiff"):
        bench.trainer(max_epochs=2).fit(
            NGDiff(bench.network()), bench.loader(bench.pairs(8)), ckpt_path=str(tmp_path / "gdiff.ckpt")
        )


@pytest.mark.parametrize("method", METHODS)
def test_loss_that_is_not_finite_names_rows_and_saves_the_state(method: type[Unlearning], bench: Any) -> None:
    class Broken(method):  # type: ignore[misc, valid-type]
        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> torch.Tensor:
            loss: torch.Tensor = super().accumulate_gradient(group, task, scale)
            return loss * math.nan if self.global_step == 2 and task == "forget" else loss

    network = bench.network()
    module = Broken(network, optimizer=adamw)
    with pytest.raises(
        FloatingPointError, match=r"forget loss is nan at step 2 on the rows row-1-16, .*last_good_step_2.ckpt"
    ):
        bench.fit(module, bench.pairs(8))
    saved = torch.load(bench.folder / "last_good_step_2.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    for name, parameter in network.named_parameters():
        assert torch.equal(saved["state_dict"][f"model.{name}"], parameter)


def test_gradient_that_overflows_is_dropped_and_both_skip_the_step(bench: Any, sgd: Optimizer) -> None:
    class Overflowing(NGDiff):
        tasks: tuple[str, ...] = ("forget",)

        def accumulate_gradient(self, group: list[Any], task: str, scale: float = 1.0) -> torch.Tensor:
            loss = super().accumulate_gradient(group, task, scale)
            if task in self.tasks:
                first = self.trainable_parameters()[0].grad
                assert first is not None
                first.view(-1)[0] = math.inf
            return loss

    network = bench.network()
    before = bench.vector(network)
    gradients = reference_gradients(network, bench.pairs(24)[0])["retain"]
    retain = torch.cat([t.flatten() for t in gradients])
    bench.fit(Overflowing(network, optimizer=sgd), bench.pairs(24))
    torch.testing.assert_close(bench.vector(network), before - 0.01 * retain / retain.norm(), atol=1e-7, rtol=0)

    network = bench.network()
    both = Overflowing(network, optimizer=sgd)
    both.tasks = ("forget", "retain")
    trainer = bench.fit(both, bench.pairs(24))
    assert torch.equal(bench.vector(network), before)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_grad_batches": 2}, r"give NGDiff\(accumulate=2\)"),
        ({"gradient_clip_val": 0.5}, r"give NGDiff\(clip_norm=0.5\)"),
        ({"precision": "16-mixed"}, "use 'bf16-mixed'"),
    ],
)
def test_settings_that_a_manual_method_does_not_obey_are_refused(
    arguments: dict[str, Any], message: str, bench: Any
) -> None:
    if arguments.get("precision") == "16-mixed":
        module = NGDiff(bench.network())
        trainer = bench.trainer()
        trainer._accelerator_connector.precision_plugin.precision = "16-mixed"
    else:
        module, trainer = NGDiff(bench.network()), bench.trainer(**arguments)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, bench.loader(bench.pairs(8)))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (NGDiff, {"accumulate": 0}, "accumulate must be at least 1, got 0"),
        (NGDiff, {"clip_norm": -1.0}, "clip_norm must be positive, got -1.0"),
        (NGDiff, {"clip_norm": math.nan}, "clip_norm must be positive, got nan"),
        (NGDiff, {"eps": 0.0}, "eps must be positive, got 0.0"),
        (NGDiff, {"buffer": "disk"}, "buffer must be 'device', 'bfloat16' or 'cpu', got 'disk'"),
        (NGDiff, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (NGDiff, {"dtype": "int8"}, "dtype must be 'float32' or 'bfloat16', got 'int8'"),
        (GradientDifference, {"forget_weight": -1.0}, "forget_weight must be finite and not negative, got -1.0"),
    ],
)
def test_absurd_arguments_are_refused(method: Any, arguments: dict[str, Any], message: str, bench: Any) -> None:
    with pytest.raises(ValueError, match=message):
        method(bench.network(), **arguments)


@pytest.mark.parametrize("lr", [-1e-3, math.nan])
def test_absurd_learning_rate_is_refused(lr: float, bench: Any) -> None:
    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        with pytest.raises(ValueError, match=r"learning rate|refuses its arguments"):
            bench.fit(NGDiff(bench.network(), optimizer=lambda p, o=optimizer: o(p, lr=lr)), bench.pairs(8))


def test_wrong_batches_are_named(bench: Any) -> None:
    with pytest.raises(ValueError, match=r"NGDiff trains on batches .* got \['attention_mask', 'id'"):
        bench.fit(NGDiff(bench.network()), [bench.forget])
    with pytest.raises(ValueError, match="trains on batches with 'labels', got"):
        bench.fit(CausalLMFineTuning(bench.network()), bench.pairs(8))


def test_named_model_reloads_from_its_checkpoint(bench: Any, tmp_path: Path) -> None:
    bench.network().save_pretrained(tmp_path / "start")
    seed_everything(0, verbose=False)
    module = NGDiff(str(tmp_path / "start"), optimizer=adamw)
    trainer = bench.fit(module, bench.pairs(8))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = NGDiff.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert torch.equal(bench.vector(again.model), bench.vector(module.model))
    module.save_pretrained(str(tmp_path / "end"))
    third = GradientAscent(str(tmp_path / "end"))
    third.configure_model()
    assert torch.equal(bench.vector(third.model), bench.vector(module.model))


def test_module_that_was_validated_can_be_fitted(bench: Any) -> None:
    module = NGDiff(bench.network())
    rows = bench.loader([{**bench.forget, "split": ["forget"] * 24}])
    bench.trainer().validate(module, rows, verbose=False)  # in inference mode, unlike the validation of a fit
    trainer = bench.trainer()
    trainer.fit(module, bench.loader(bench.pairs(8)), rows)
    assert "val/forget_loss" in trainer.callback_metrics
