"""Tiny pipelines of diffusers, built from configurations and written as real ones are."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from lit_modules.synthia import (
    SDXL,
    Chroma,
    Flux,
    Flux2Klein,
    HiDream,
    Kandinsky3,
    Lumina2,
    PixArtSigma,
    QwenImage,
    Sana,
    StableDiffusion,
    StableDiffusion3,
    ZImage,
)

BACKBONES: dict[str, tuple[Any, int]] = {
    "stable_diffusion": (StableDiffusion, 16),
    "sdxl": (SDXL, 16),
    "stable_diffusion3": (StableDiffusion3, 16),
    "flux": (Flux, 16),
    "kandinsky3": (Kandinsky3, 64),
    "sana": (Sana, 32),
    "pixart_sigma": (PixArtSigma, 16),
    "lumina2": (Lumina2, 32),
    "z_image": (ZImage, 16),
    "qwen_image": (QwenImage, 16),
    "flux2_klein": (Flux2Klein, 16),
    "chroma": (Chroma, 16),
    "hidream": (HiDream, 16),
}
"""Backbone of each pipeline below, by the name of its fixture, and the smallest side of its pictures."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def clip_tokenizer(max_length: int = 12) -> Any:
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *ends]
    return CLIPTokenizer({word: i for i, word in enumerate(vocabulary)}, merges=[], model_max_length=max_length)


def clip_text(hidden: int = 8, projection: int | None = None, max_length: int = 12) -> Any:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=hidden,
        projection_dim=projection or hidden,
        max_position_embeddings=max_length,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        **SIZES,
    )
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def t5_text(width: int = 8) -> Any:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def autoencoder(channels: int = 4, blocks: int = 2, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=[4] * (blocks - 1) + [8],
        latent_channels=channels,
        norm_num_groups=2,
        **more,
    )


def u_net(**more: Any) -> Any:
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
    }
    return diffusers.UNet2DConditionModel(**sizes | more)


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Any]], str]:
    """Make what a function makes from one seed, write it and return its folder."""

    def save(make: Callable[[], Any]) -> str:
        folder = tmp_path_factory.mktemp("tiny")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make().save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a CLIP of two layers."""
    vision: dict[str, Any] = {"hidden_size": 8, "image_size": 8, "patch_size": 4, **SIZES}
    folder, size = tmp_path_factory.mktemp("clip"), {"height": 8, "width": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = clip_text(max_length=40).config.to_dict()
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), clip_tokenizer(40)).save_pretrained(folder)
    return str(folder)


def stable_diffusion_pipeline(scheduler: Any, kind: Any = diffusers.StableDiffusionPipeline, channels: int = 4) -> Any:
    return kind(
        vae=autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=u_net(in_channels=channels),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def stable_diffusion(save_tiny: Any) -> str:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = partial(diffusers.PNDMScheduler, skip_prk_steps=True, steps_offset=1, **betas)
    return save_tiny(lambda: stable_diffusion_pipeline(scheduler()))


@pytest.fixture(scope="session")
def stable_diffusion_v(save_tiny: Any) -> str:
    velocity = partial(diffusers.DDIMScheduler, prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    return save_tiny(lambda: stable_diffusion_pipeline(velocity()))


@pytest.fixture(scope="session")
def sdxl(save_tiny: Any) -> str:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 6,
        "cross_attention_dim": 16,
    }
    return save_tiny(
        lambda: diffusers.StableDiffusionXLPipeline(
            vae=autoencoder(scaling_factor=0.13025),
            text_encoder=clip_text(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_text(projection=6),
            tokenizer_2=clip_tokenizer(),
            unet=u_net(**added),
            scheduler=diffusers.EulerDiscreteScheduler(
                beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
            ),
            add_watermarker=False,
        )
    )


@pytest.fixture(scope="session")
def stable_diffusion3(save_tiny: Any) -> str:
    return save_tiny(
        lambda: diffusers.StableDiffusion3Pipeline(
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                caption_projection_dim=16,
                pooled_projection_dim=12,
                pos_embed_max_size=16,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=clip_text(projection=6),
            tokenizer=clip_tokenizer(),
            text_encoder_2=clip_text(projection=6),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=t5_text(16),
            tokenizer_3=t5_tokenizer(),
        )
    )


def flux_pipeline(guidance: bool) -> Any:
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance, max_shift=1.15
        ),
        vae=autoencoder(scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 2, 2),
        ),
    )


@pytest.fixture(scope="session")
def flux(save_tiny: Any) -> str:
    return save_tiny(lambda: flux_pipeline(True))


@pytest.fixture(scope="session")
def flux_schnell(save_tiny: Any) -> str:
    return save_tiny(lambda: flux_pipeline(False))


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DECODER = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}


def qwen_tokenizer() -> Any:
    words = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special = ["<|im_start|>", "<|im_end|>"]
    tokens = {word: number for number, word in enumerate(words)}
    return Qwen2Tokenizer(tokens, merges=[], additional_special_tokens=special, chat_template=CHAT)


def qwen3(kind: Any, **more: Any) -> Any:
    sizes = {"vocab_size": 264, "hidden_size": 8, "head_dim": 4}
    return kind(Qwen3Config(**DECODER | sizes | more))


def qwen_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**DECODER, "vocab_size": 264, "hidden_size": 16, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def gemma_tokenizer() -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *LETTERS]
    return GemmaTokenizer({word: number for number, word in enumerate(words)}, merges=[], add_bos_token=True)


def gemma() -> Any:
    sizes = {"vocab_size": 40, "hidden_size": 8, "head_dim": 4, "query_pre_attn_scalar": 4}
    return Gemma2Model(Gemma2Config(**DECODER | sizes))


def sana_pipeline() -> Any:
    blocks = ("ResBlock", "EfficientViTBlock")
    return diffusers.SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41,
        ),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=16,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


@pytest.fixture(scope="session")
def sana(save_tiny: Any) -> str:
    return save_tiny(sana_pipeline)


@pytest.fixture(scope="session")
def pixart_sigma(save_tiny: Any) -> str:
    return save_tiny(
        lambda: diffusers.PixArtSigmaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_text(),
            vae=autoencoder(scaling_factor=0.13025),
            transformer=diffusers.PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                cross_attention_dim=16,
                sample_size=8,
                caption_channels=8,
                use_additional_conditions=False,
            ),
            scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
        )
    )


@pytest.fixture(scope="session")
def lumina2(save_tiny: Any) -> str:
    return save_tiny(
        lambda: diffusers.Lumina2Pipeline(
            transformer=diffusers.Lumina2Transformer2DModel(
                sample_size=4,
                in_channels=4,
                hidden_size=16,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=8,
                axes_dim_rope=(4, 2, 2),
                axes_lens=(300, 16, 16),
                cap_feat_dim=8,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder(blocks=4, scaling_factor=0.4, shift_factor=0.1),
            text_encoder=gemma(),
            tokenizer=gemma_tokenizer(),
        )
    )


@pytest.fixture(scope="session")
def z_image(save_tiny: Any) -> str:
    return save_tiny(
        lambda: diffusers.ZImagePipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder(scaling_factor=0.4, shift_factor=0.1),
            text_encoder=qwen3(Qwen3Model),
            tokenizer=qwen_tokenizer(),
            transformer=diffusers.ZImageTransformer2DModel(
                in_channels=4,
                dim=16,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=8,
                axes_dims=[4, 2, 2],
                axes_lens=[600, 16, 16],
            ),
        )
    )


@pytest.fixture(scope="session")
def qwen_image(save_tiny: Any) -> str:
    return save_tiny(
        lambda: diffusers.QwenImagePipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
            vae=diffusers.AutoencoderKLQwenImage(
                base_dim=12,
                z_dim=4,
                dim_mult=[1, 2],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[1.5, 0.7, 2.0, 1.0],
            ),
            text_encoder=qwen_vl(),
            tokenizer=qwen_tokenizer(),
            transformer=diffusers.QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 2, 2),
            ),
        )
    )


def flux2_klein_pipeline(distilled: bool) -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
    )
    torch.nn.init.normal_(vae.bn.running_mean, std=0.3)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=qwen3(Qwen3ForCausalLM, num_hidden_layers=27),  # the pipeline reads the 27th layer
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        is_distilled=distilled,
    )


@pytest.fixture(scope="session")
def flux2_klein(save_tiny: Any) -> str:
    return save_tiny(lambda: flux2_klein_pipeline(False))


@pytest.fixture(scope="session")
def flux2_klein_distilled(save_tiny: Any) -> str:
    return save_tiny(lambda: flux2_klein_pipeline(True))


@pytest.fixture(scope="session")
def chroma(save_tiny: Any) -> str:
    return save_tiny(
        lambda: diffusers.ChromaPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder(scaling_factor=0.4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=t5_text(),
            tokenizer=t5_tokenizer(),
            transformer=diffusers.ChromaTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=8,
                axes_dims_rope=(4, 2, 2),
                approximator_num_channels=8,
                approximator_hidden_dim=16,
                approximator_layers=1,
            ),
        )
    )


@pytest.fixture(scope="session")
def hidream(save_tiny: Any) -> str:
    llama = LlamaConfig(**DECODER | {"vocab_size": 264, "hidden_size": 8, "head_dim": 4})
    return save_tiny(
        lambda: diffusers.HiDreamImagePipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(scaling_factor=0.4, shift_factor=0.1),
            text_encoder=clip_text(8, 8, max_length=128),
            tokenizer=clip_tokenizer(128),
            text_encoder_2=clip_text(8, 8, max_length=128),
            tokenizer_2=clip_tokenizer(128),
            text_encoder_3=t5_text(),
            tokenizer_3=t5_tokenizer(),
            text_encoder_4=LlamaForCausalLM(llama),
            tokenizer_4=qwen_tokenizer(),
            transformer=diffusers.HiDreamImageTransformer2DModel(
                patch_size=2,
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                caption_channels=[8, 8],
                text_emb_dim=16,
                axes_dims_rope=(4, 2, 2),
                max_resolution=(16, 16),
                llama_layers=[0, 1],
            ),
        )
    )


def open_pipeline(name: str, folder: str, size: int, **parts: Any) -> Any:
    """Open a pipeline of diffusers by the name of its class; that of HiDream draws the area that it is made for."""
    pipeline = getattr(diffusers, name).from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    if name == "HiDreamImagePipeline":
        pipeline.default_sample_size = size // pipeline.vae_scale_factor
    return pipeline


CALLS: dict[str, dict[str, Any]] = {
    "stable_diffusion": {"guidance_scale": 7.5},
    "stable_diffusion_v": {"guidance_scale": 7.5},
    "sdxl": {"guidance_scale": 5.0},
    "stable_diffusion3": {"guidance_scale": 4.5},
    "flux": {"guidance_scale": 3.5},
    "flux_schnell": {"guidance_scale": 3.5},
    "kandinsky3": {"guidance_scale": 3.0},
    "sana": {"guidance_scale": 4.5, "use_resolution_binning": False},
    "pixart_sigma": {"guidance_scale": 4.5, "use_resolution_binning": False},
    "lumina2": {"guidance_scale": 4.0},
    "z_image": {"guidance_scale": 0.0},
    "qwen_image": {"true_cfg_scale": 4.0, "negative_prompt": ""},
    "flux2_klein": {"guidance_scale": 4.0},
    "chroma": {"guidance_scale": 5.0},
    "hidream": {"guidance_scale": 5.0},
}
"""Arguments with which each pipeline draws as our backbone does by default, by fixture."""


def kandinsky_u_net(width: int, **more: Any) -> Any:
    network = diffusers.Kandinsky3UNet(
        time_embedding_dim=width,
        layers_per_block=2,
        block_out_channels=(width, width, width, width),
        cross_attention_dim=width,
        encoder_hid_dim=8,
        **more,
    )
    for name, parameter in network.named_parameters():
        if "context_mlp" in name:  # new ones are zero, and so the timestep would not matter
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def movq(width: int, attention: bool) -> Any:
    return diffusers.VQModel(
        down_block_types=["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        block_out_channels=[width] * 4,
        latent_channels=4,
        num_vq_embeddings=1,
        vq_embed_dim=4,
        norm_type="spatial",
    )


def kandinsky_pipeline() -> Any:
    return diffusers.Kandinsky3Pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        unet=kandinsky_u_net(16, groups=4, attention_head_dim=8),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        movq=movq(32, attention=False),
    )


@pytest.fixture(scope="session")
def kandinsky3(save_tiny: Any) -> str:
    return save_tiny(kandinsky_pipeline)


@pytest.fixture(scope="session")
def kandinsky3_flash(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """Folder of weights as they were published, and the networks of diffusers that they belong to."""
    folder = tmp_path_factory.mktemp("flash") / "weights"
    encoder = folder / "flan_ul2_encoder"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text, network, images = t5_text(), kandinsky_u_net(64), movq(32, attention=True)
    text.save_pretrained(encoder)
    t5_tokenizer().save_pretrained(encoder)
    weights = network.state_dict()
    projection = {name: value for name, value in weights.items() if name.startswith("encoder_hid_proj.")}
    renamed = {
        "projection_linear.weight": "0.weight",
        "projection_norm.weight": "1.weight",
        "projection_norm.bias": "1.bias",
    }
    torch.save(
        {renamed[name.removeprefix("encoder_hid_proj.")]: value for name, value in projection.items()},
        encoder / "projection_flash.pt",
    )
    rest = {published_u_net(name): value for name, value in weights.items() if name not in projection}
    torch.save({"unet": rest, "null_embedding": torch.zeros(1, 64)}, folder / "kandinsky3_flash.pt")
    codes = {name: value for name, value in images.state_dict().items() if not name.startswith("quantize")}
    torch.save({published_movq(name): as_convolution(name, value) for name, value in codes.items()}, folder / "movq.pt")
    return str(folder.parent), network.eval(), images.eval()


def published_u_net(name: str) -> str:
    """Return the name in the published file of a weight of ``Kandinsky3UNet``."""
    parts = name.split(".")
    ends = {"to_q": ["to_query"], "to_k": ["to_key"], "to_v": ["to_value"]}
    heads = {
        "time_embedding": {"linear_1": "to_time_embed.1", "linear_2": "to_time_embed.3"},
        "conv_in": "in_layer",
        "conv_norm_out": "out_layer.0",
        "conv_out": "out_layer.2",
        "add_time_condition": "feature_pooling",
        "down_blocks": "down_samples",
        "up_blocks": "up_samples",
    }
    head: Any = heads[parts[0]]
    rest = parts[1:]
    if isinstance(head, dict):
        head, rest = head[rest[0]], rest[1:]
    if parts[0] in ("down_blocks", "up_blocks"):
        level, kind, number, *rest = rest
        place = {"resnets_in": 0, "attentions": 1, "resnets_out": 2}[kind]
        if kind == "attentions" and number == "0":
            block = "self_attention_block"
        else:
            block = f"resnet_attn_blocks.{int(number) - (kind == 'attentions')}.{place}"
        head = f"{head}.{level}.{block}"
    if "to_out" in rest:
        rest = [*rest[: rest.index("to_out")], "output_layer", *rest[rest.index("to_out") + 2 :]]
    rest = [each for part in rest for each in ends.get(part, [part])]
    return ".".join([head, *rest])


def published_movq(name: str) -> str:
    """Return the name in the published file of a weight of ``VQModel`` with four levels."""
    side, *parts = name.split(".")
    if side not in ("encoder", "decoder"):
        return name
    text = ".".join(parts)
    for place, level in enumerate(reversed(range(4))):
        text = text.replace(f"up_blocks.{place}.", f"up.{level}.")
    for old, new in (
        ("down_blocks.", "down."),
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("resnets.", "block."),
        ("attentions.", "attn."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("to_out.0.", "proj_out."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("spatial_norm.", "norm."),
        ("group_norm.", "norm."),
    ):
        text = text.replace(old, new)
    if side == "encoder":  # norms are spatial ones there too, without the latents
        for norm in ("norm1.", "norm2.", "norm_out.", ".norm."):
            text = text.replace(norm, f"{norm}norm_layer.")
    return f"{side}.{text}"


def as_convolution(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return a weight of attention as the 1 x 1 convolution that it is in the published file."""
    linear = name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
    return value[:, :, None, None] if linear else value
