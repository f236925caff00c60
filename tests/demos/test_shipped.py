from pathlib import Path

import pytest
import torch

from lit_modules.demos.shipped import load_weights, save_weights


def test_weights_come_back_in_float32_as_rounded_to_half_precision(tmp_path: Path) -> None:
    weights = {"layer.weight": torch.randn(3, 4).t(), "steps": torch.tensor(7)}
    save_weights(weights, "world/base", tmp_path)
    save_weights({"bias": torch.zeros(2)}, "world/recogniser", tmp_path)

    loaded = load_weights("world/base", tmp_path)

    assert loaded["layer.weight"].dtype == torch.float32
    assert torch.equal(loaded["layer.weight"], weights["layer.weight"].half().float())
    assert loaded["steps"].item() == 7
    assert load_weights("world/recogniser", tmp_path)["bias"].tolist() == [0, 0]


def test_weights_of_another_content_are_refused(tmp_path: Path) -> None:
    path = save_weights({"bias": torch.zeros(2)}, "base", tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")

    with pytest.raises(ValueError, match="SHA256SUMS says"):
        load_weights("base", tmp_path)
