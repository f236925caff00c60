from pathlib import Path
from typing import Any

import pytest
import torch

from lit_modules.synthia.backbones.kandinsky3_weights import (
    convert_movq,
    convert_u_net,
    load_movq,
    load_u_net,
    read_weights,
)


def test_names_of_the_u_net() -> None:
    names = {
        "to_time_embed.1.weight": "time_embedding.linear_1.weight",
        "in_layer.bias": "conv_in.bias",
        "out_layer.2.weight": "conv_out.weight",
        "feature_pooling.attention.to_query.weight": "add_time_condition.attention.to_q.weight",
        "down_samples.1.self_attention_block.attention.output_layer.weight": (
            "down_blocks.1.attentions.0.attention.to_out.0.weight"
        ),
        "up_samples.2.resnet_attn_blocks.2.0.resnet_blocks.1.projection.bias": (
            "up_blocks.2.resnets_in.2.resnet_blocks.1.projection.bias"
        ),
        "down_samples.3.resnet_attn_blocks.0.1.feed_forward.0.weight": (
            "down_blocks.3.attentions.1.feed_forward.0.weight"
        ),
        "down_samples.0.resnet_attn_blocks.1.2.shortcut_down_sample.bias": (
            "down_blocks.0.resnets_out.1.shortcut_down_sample.bias"
        ),
    }
    value, projection = torch.zeros(1), {"0.weight": torch.ones(1), "1.bias": torch.ones(1)}
    converted = convert_u_net(dict.fromkeys(names, value), projection)
    assert set(converted) == {
        *names.values(),
        "encoder_hid_proj.projection_linear.weight",
        "encoder_hid_proj.projection_norm.bias",
    }


def test_names_of_the_movq() -> None:
    names = {
        "encoder.down.0.block.1.norm1.norm_layer.weight": "encoder.down_blocks.0.resnets.1.norm1.weight",
        "encoder.down.3.attn.0.norm.norm_layer.bias": "encoder.down_blocks.3.attentions.0.group_norm.bias",
        "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
        "encoder.norm_out.norm_layer.weight": "encoder.conv_norm_out.weight",
        "decoder.up.3.attn.1.norm.conv_y.weight": "decoder.up_blocks.0.attentions.1.spatial_norm.conv_y.weight",
        "decoder.up.0.block.2.nin_shortcut.bias": "decoder.up_blocks.3.resnets.2.conv_shortcut.bias",
        "decoder.mid.block_2.norm2.conv_b.bias": "decoder.mid_block.resnets.1.norm2.conv_b.bias",
        "decoder.mid.attn_1.proj_out.weight": "decoder.mid_block.attentions.0.to_out.0.weight",
        "decoder.norm_out.norm_layer.bias": "decoder.conv_norm_out.norm_layer.bias",
        "post_quant_conv.weight": "post_quant_conv.weight",
    }
    converted = convert_movq(dict.fromkeys(names, torch.zeros(2, 2, 1, 1)))
    assert set(converted) == set(names.values())
    assert converted["decoder.mid_block.attentions.0.to_out.0.weight"].shape == (2, 2)
    assert converted["post_quant_conv.weight"].shape == (2, 2, 1, 1)


def test_weights_of_something_else_are_refused(kandinsky3_flash: tuple[str, Any, Any], tmp_path: Path) -> None:
    folder = Path(kandinsky3_flash[0]) / "weights"
    projection = str(folder / "flan_ul2_encoder" / "projection_flash.pt")
    with pytest.raises(ValueError, match=r"does not hold the U-Net of Kandinsky 3\.1: no conv_in\.weight"):
        load_u_net(str(folder / "movq.pt"), projection)
    with pytest.raises(ValueError, match=r"are not those of the MoVQ of Kandinsky 3\.1"):
        load_movq(str(folder / "kandinsky3_flash.pt"))
    weights = read_weights(str(folder / "kandinsky3_flash.pt"))
    torch.save({**weights, "more": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match=r"more\.pt does not hold the Kandinsky3UNet of Kandinsky 3\.1; more does not"):
        load_u_net(str(tmp_path / "more.pt"), projection)
