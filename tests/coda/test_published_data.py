from pathlib import Path

from datamodules.few_shot.datasets import NovelSpecies
from lit_modules.metrics.few_shot import PairAccuracy
from tests.coda.test_updating import make, names_that_train, scores_of, trainer
from tests.datamodules.test_few_shot_download import PAIRS, write


def test_a_model_is_updated_on_labelled_parquet(tiny_llava: str, tmp_path: Path) -> None:
    write(tmp_path / "data")
    data = NovelSpecies(str(tmp_path / "data"), PAIRS, n_real=2, near_duplicates=False, batch_size=2)
    module = make(tiny_llava, rank=2, learning_rate=1e-2, metric=PairAccuracy(resamples=0))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    assert run.global_step == 2
    weights = dict(module.model.named_parameters())
    assert all(bool(weights[name].any()) for name in names_that_train(module) if "lora_B" in name)
    results = scores_of(tmp_path, module, data)
    assert 0 <= results["acc_macro"] <= 1
    assert 0 <= results["invalid"] <= 1
