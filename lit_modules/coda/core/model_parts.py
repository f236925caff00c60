"""Parts of an image-text model, found in its modules."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftModel
from torch import nn

Part = Literal["language model", "projector", "vision tower"]
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class ModelParts:
    """Names of the modules of an image-text model.

    Args:
        language_model: Decoder of the text.
        vision_tower: Encoder of the images.
        projector: Modules between them, whose output has the width of the text.
        head: Output embeddings, which count to the language model.
    """

    language_model: str
    vision_tower: str
    projector: tuple[str, ...]
    head: str

    def of(self, parameter: str) -> Part:
        """Return the part that a parameter belongs to; what is in neither tower counts to the projector."""
        name = f".{parameter}."

        def inside(module: str) -> bool:
            return f".{module}." in name

        if any(map(inside, self.projector)):
            return "projector"
        if inside(self.vision_tower):
            return "vision tower"
        return "language model" if inside(self.language_model) or inside(self.head) else "projector"


def find_parts(model: Any, projector: str | None = None) -> ModelParts:
    """Find the parts of an image-text model of transformers, with or without adapters.

    The language model is the largest module that holds the input embeddings and not the vision tower. The projector is
    what lies beside both and ends in the width of the text, or what comes behind the blocks of the vision tower and
    does, such as the merger of Qwen-VL.

    Args:
        model: Model.
        projector: Name of the projector, whole or its last words; ``None`` finds it.

    Raises:
        ValueError: If there is no vision tower, or no module of the name.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = {_plain(name): module for name, module in base.named_modules()}
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    tower = _vision_tower(base, embeddings)
    if tower is None:
        raise ValueError(f"{type(base).__name__} has no vision tower; give an image-text model.")
    names = {module: name for name, module in reversed(modules.items())}
    language = next(m for m in modules.values() if _holds(m, embeddings) and not _holds(m, tower))
    if projector is None:
        found = _projector(base, tower, language, modules)
    else:
        found = tuple(name for name in modules if f".{name}".endswith(f".{projector}"))
        if not found:
            raise ValueError(
                f"{type(base).__name__} has no module {projector!r}; set projector to the name of the one between "
                "vision tower and language model, or leave it out to have it found."
            )
    return ModelParts(names[language], names[tower], found, names.get(head, ""))


def adapted_layers(model: Any, parts: ModelParts) -> str:
    """Return a regular expression of the linear layers of the language model, without its head and its routers."""
    text = model.config.get_text_config()
    experts = {getattr(text, name, None) for name in _EXPERTS}
    head = model.get_output_embeddings()
    leaves = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(f"{parts.language_model}.")
        and module is not head
        and module.out_features not in experts
    }
    return rf"(.*\.)?{re.escape(parts.language_model)}\.(.*\.)?({'|'.join(sorted(leaves))})"


def _plain(name: str) -> str:
    """Return the name that a module has without the wrappers of peft."""
    return re.sub(r"\.(modules_to_save\.\w+|original_module|base_layer)(?=\.|$)", "", name)


def _holds(module: nn.Module, inner: nn.Module) -> bool:
    return any(part is inner for part in module.modules())


def _vision_tower(base: Any, embeddings: nn.Module) -> nn.Module | None:
    """Return the encoder that the model names, else the largest module with a convolution and without embeddings."""
    tower = base.get_encoder(modality="image")
    if isinstance(tower, nn.Module) and not _holds(tower, embeddings):
        return tower
    return next(
        (
            module
            for module in base.modules()
            if not _holds(module, embeddings) and any(isinstance(m, nn.Conv2d | nn.Conv3d) for m in module.modules())
        ),
        None,
    )


def _projector(base: Any, tower: nn.Module, language: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    width = base.config.get_text_config().hidden_size
    body = next(m for m in reversed(modules.values()) if _holds(m, tower) and _holds(m, language))
    beside = [
        child for child in body.children() if not any(_holds(child, m) or _holds(m, child) for m in (tower, language))
    ]
    lists = [child for child in tower.children() if isinstance(child, nn.ModuleList)]
    children = list(tower.children())
    behind = children[children.index(max(lists, key=len)) + 1 :] if lists else []
    for candidates in (beside, behind):
        inner = [m for child in candidates for m in (child if isinstance(child, nn.ModuleList) else [child])]
        chosen = [m for m in inner if m is not base.get_output_embeddings() and _last_width(m) == width]
        if chosen:
            return tuple(name for name, module in modules.items() if any(module is m for m in chosen))
    return ()


def _last_width(module: nn.Module) -> int | None:
    """Return the number of outputs of the last matrix of a module."""
    linear = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]
    matrices = [p.shape[-1] for p in module.parameters() if p.ndim == 2]
    return linear[-1] if linear else matrices[-1] if matrices else None
