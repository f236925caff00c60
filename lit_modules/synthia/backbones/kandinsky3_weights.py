"""Read the published weights of Kandinsky 3.1, whose names are not those of diffusers.

The U-Net differs in names alone, and the projection of the text encoder's states, a file of its own, is part of it in
diffusers. The MoVQ numbers the levels of its decoder the other way, and its attention is 1 x 1 convolutions where
diffusers have linear layers.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_modules.utils.checkpoints import load_plain

Weights = dict[str, Tensor]

_U_NET = (
    (r"^to_time_embed\.1\.", "time_embedding.linear_1."),
    (r"^to_time_embed\.3\.", "time_embedding.linear_2."),
    (r"^in_layer\.", "conv_in."),
    (r"^out_layer\.0\.", "conv_norm_out."),
    (r"^out_layer\.2\.", "conv_out."),
    (r"^feature_pooling\.", "add_time_condition."),
    (r"^(down|up)_samples\.", r"\1_blocks."),
    (r"\.self_attention_block\.", ".attentions.0."),
    (r"\.resnet_attn_blocks\.(\d+)\.0\.", r".resnets_in.\1."),
    (r"\.resnet_attn_blocks\.(\d+)\.2\.", r".resnets_out.\1."),
    (r"\.to_query\.", ".to_q."),
    (r"\.to_key\.", ".to_k."),
    (r"\.to_value\.", ".to_v."),
    (r"\.output_layer\.", ".to_out.0."),
)
_PROJECTION = {
    "0.weight": "projection_linear.weight",
    "1.weight": "projection_norm.weight",
    "1.bias": "projection_norm.bias",
}
_MOVQ = (
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"^(decoder\..*\.attentions\.\d+)\.norm\.", r"\1.spatial_norm."),
    (r"^(encoder\..*\.attentions\.\d+)\.norm\.norm_layer\.", r"\1.group_norm."),
    (r"^(encoder\..*)\.norm_layer\.", r"\1."),
)


def read_weights(path: str) -> Weights:
    """Read a file of tensors of torch; those of the U-Net have it under ``unet``.

    Raises:
        ValueError: If it holds something else.
    """
    content = load_plain(path)
    content = content.get("unet", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold tensors by name, got {type(content).__name__}.")
    return dict(content)


def convert_u_net(weights: Weights, projection: Weights) -> Weights:
    """Return the U-Net's weights under the names of diffusers, with the projection of the text encoder's states."""
    converted = {}
    for name, value in weights.items():
        # attention blocks of the levels come after the one of self-attention
        name = re.sub(
            r"\.resnet_attn_blocks\.(\d+)\.1\.",
            lambda match: f".attentions.{int(match[1]) + 1}.",
            _renamed(name, _U_NET),
        )
        converted[name] = value
    return converted | {f"encoder_hid_proj.{_PROJECTION.get(name, name)}": value for name, value in projection.items()}


def convert_movq(weights: Weights) -> Weights:
    """Return the MoVQ's weights under the names of diffusers, with an empty codebook, which is not used."""
    levels = 1 + max(
        (int(found[1]) for name in weights if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0
    )
    converted = {}
    for name, value in weights.items():
        name = re.sub(r"\.up\.(\d+)\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.", name)
        name = _renamed(name, _MOVQ)
        if re.search(r"\.attentions\.\d+\.to_", name) and value.ndim == 4:
            value = value[:, :, 0, 0]
        converted[name] = value
    if "encoder.conv_out.weight" in converted:
        converted["quantize.embedding.weight"] = torch.zeros(1, len(converted["encoder.conv_out.weight"]))
    return converted


def u_net_config(weights: Weights) -> dict[str, Any]:
    """Return the arguments of ``Kandinsky3UNet`` that converted weights belong to; heads of 64, 32 groups."""
    first = "down_blocks.{}.resnets_in.0.resnet_blocks.3.projection.weight"
    return {
        "in_channels": weights["conv_in.weight"].shape[1],
        "time_embedding_dim": len(weights["time_embedding.linear_1.weight"]),
        "layers_per_block": _count(weights, "down_blocks.0.resnets_in.{}.resnet_blocks.0.projection.weight"),
        "block_out_channels": tuple(len(weights[first.format(level)]) for level in range(_count(weights, first))),
        "cross_attention_dim": len(weights["encoder_hid_proj.projection_linear.weight"]),
        "encoder_hid_dim": weights["encoder_hid_proj.projection_linear.weight"].shape[1],
    }


def movq_config(weights: Weights) -> dict[str, Any]:
    """Return the arguments of ``VQModel`` that published weights belong to."""
    try:
        return _movq_config(convert_movq(weights))
    except KeyError as error:
        raise ValueError(f"The weights are not those of the MoVQ of Kandinsky 3.1: no {error.args[0]}.") from error


def load_u_net(path: str, projection: str, dtype: torch.dtype | None = None) -> Any:
    """Return the U-Net of two published files: its weights, and the projection of the text encoder's states.

    Raises:
        ValueError: If they are those of another network.
    """
    from diffusers import Kandinsky3UNet

    weights = convert_u_net(read_weights(path), read_weights(projection))
    try:
        config = u_net_config(weights)
    except KeyError as error:
        raise ValueError(f"{path} does not hold the U-Net of Kandinsky 3.1: no {error.args[0]}.") from error
    return _filled(Kandinsky3UNet, config, weights, path, dtype)


def load_movq(path: str, dtype: torch.dtype | None = None) -> Any:
    """Return the MoVQ of a published file; ``dtype=None`` leaves the type of the weights.

    Raises:
        ValueError: If they are those of another network.
    """
    from diffusers import VQModel

    weights = read_weights(path)
    return _filled(VQModel, movq_config(weights), convert_movq(weights), path, dtype)


def _movq_config(weights: Weights) -> dict[str, Any]:
    level = "encoder.down_blocks.{}.resnets.0.conv1.weight"
    numbers = range(_count(weights, level))
    down = [_attends(weights, f"encoder.down_blocks.{number}") for number in numbers]
    up = [_attends(weights, f"decoder.up_blocks.{number}") for number in numbers]
    latents = len(weights["encoder.conv_out.weight"])
    return {
        "down_block_types": ["AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D" for attends in down],
        "up_block_types": ["AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D" for attends in up],
        "block_out_channels": [len(weights[level.format(number)]) for number in numbers],
        "layers_per_block": _count(weights, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "latent_channels": latents,
        "vq_embed_dim": latents,
        "num_vq_embeddings": 1,
        "norm_type": "spatial",
    }


def _filled(kind: Any, config: dict[str, Any], weights: Weights, path: str, dtype: torch.dtype | None) -> nn.Module:
    with torch.device("meta"):  # weights that are replaced need not be drawn
        network: nn.Module = kind(**config)
    expected = network.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if wrong:
        raise ValueError(f"{path} does not hold the {kind.__name__} of Kandinsky 3.1; {wrong[0]} does not fit.")
    network.load_state_dict({name: value.to(dtype or value.dtype) for name, value in weights.items()}, assign=True)
    return network.eval()


def _attends(weights: Weights, block: str) -> bool:
    return any(name.startswith(f"{block}.attentions.") for name in weights)


def _count(weights: Weights, pattern: str) -> int:
    number = 0
    while pattern.format(number) in weights:
        number += 1
    return number


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
