"""Base of pipelines that take no adapters of their own: peft puts them on the network, writes and loads them."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lit_modules.synthia.backbones.pipeline import PipelineBackbone
from lit_modules.utils.adapters import without_dropout
from lit_modules.utils.model_cards import Origin

_PREFIX = "base_model.model."


class InjectedBackbone(PipelineBackbone):
    """A pipeline without ``load_lora_weights``, whose network takes adapters from peft alone.

    :meth:`save_pretrained` writes an adapter as ``peft.PeftModel.from_pretrained(network, folder)`` and
    :meth:`load_adapter` read it.
    """

    def add_adapter(self, config: Any) -> None:
        """Put an adapter of peft on the network."""
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, self.network)
        self._peft_config = config

    def save_pretrained(self, folder: str, adapter: bool) -> None:
        """Write the adapter as peft does, or the whole network in its own folder."""
        if not adapter:
            super().save_pretrained(folder, adapter)
            return
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = self._with_config(get_peft_model_state_dict)
        Path(folder).mkdir(parents=True, exist_ok=True)
        without_dropout(self._peft_config).save_pretrained(folder)
        named = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(named, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})

    def origin(self, adapter: bool) -> Origin:
        """Return what a model card says: peft loads the adapter."""
        return replace(super().origin(adapter), library="peft") if adapter else super().origin(adapter)

    def usage(self, adapter: bool) -> str:
        """Return lines that put the adapter on the network of the pipeline, or load the network into it."""
        if not adapter:
            return super().usage(adapter)
        kind, network = self.pipeline_name, f"pipeline.{self.network_part}"
        return (
            f"from diffusers import {kind}\nfrom peft import PeftModel\n\n"
            f'pipeline = {kind}.from_pretrained("{self.model}")\n'
            f'{network} = PeftModel.from_pretrained({network}, "FOLDER")'
        )

    def load_adapter(self, folder: str) -> None:
        """Put an adapter on the network that :meth:`save_pretrained` wrote to a folder."""
        from peft import PeftConfig, set_peft_model_state_dict
        from safetensors.torch import load_file

        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (Path(folder) / name).is_file():
                raise FileNotFoundError(
                    f"The folder {folder} holds no adapter that save_pretrained() wrote: no {name}."
                )
        self.load("network")
        self.add_adapter(PeftConfig.from_pretrained(folder))
        weights = load_file(f"{folder}/adapter_model.safetensors")
        named = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
        self._with_config(partial(set_peft_model_state_dict, peft_model_state_dict=named))

    def _with_config(self, use: Any) -> Any:
        """Call what looks for the adapter's configuration at the network."""
        self.network.peft_config = {"default": self._peft_config}
        return use(self.network)
