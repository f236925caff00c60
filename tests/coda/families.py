"""Tiny image-text models of the families of transformers, with processors and chat templates like real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lit_modules.networks.tiny_clip import byte_level_bpe
from tests.coda.tiny_llava import WORDS
from tests.coda.tiny_llava import model as llava_next_model
from tests.coda.tiny_llava import processor as llava_next_processor

Pair = tuple[Any, Any]
SIDE, PATCH = 28, 14
SQUARE = {"height": SIDE, "width": SIDE}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": PATCH}
T: Any = transformers  # its classes take any keyword


def tokenizer(*special: str, ends: tuple[str | None, str, str] = ("<s>", "</s>", "<pad>"), **named: str) -> Any:
    bos, eos, pad = ends
    tokens = list(dict.fromkeys(token for token in (bos, eos, pad, *special) if token))
    fast = byte_level_bpe([WORDS] * 4, tokens, 360 + len(tokens), add_prefix_space=False)
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=fast, bos_token=bos, eos_token=eos, pad_token=pad, extra_special_tokens=named)


def text(words: Any, kind: str = "llama", **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    rest = {"num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": len(words)}
    return {"model_type": kind, **sizes, **ids, **rest, **more}


def siglip(**more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION, **more}


def chat(image: str, begin: str = "<|im_start|>{role}\n", end: str = "<|im_end|>\n", opening: str = "") -> str:
    """Return a chat template of turns between two marks, the place of an image as it is; ``opening`` of an answer."""
    opened = begin.replace("{role}", "{{ message['role'] }}")
    asked = begin.replace("{role}", "assistant")
    parts = f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    turn = f"{opened}{{% for part in message['content'] %}}{parts}{{% endfor %}}{end}"
    answer = f"{{% if add_generation_prompt %}}{asked}{opening}{{% endif %}}"
    return f"{{% for message in messages %}}{turn}{{% endfor %}}{answer}"


CHATML: tuple[str | None, str, str] = (None, "<|im_end|>", "<|endoftext|>")
INSTRUCTION = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}[/INST]{% else %}{{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def llava() -> Pair:
    words = tokenizer("<image>", "<|im_start|>", ends=CHATML, image_token="<image>")
    images = T.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    fields = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    config = T.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
        text_config=text(words),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    processor = T.LlavaProcessor(images, words, chat_template=chat("<image>\n"), **fields)
    return T.LlavaForConditionalGeneration(config), processor


def llava_next() -> Pair:
    processor = llava_next_processor()
    return llava_next_model(processor.tokenizer), processor


def llava_onevision() -> Pair:
    words = tokenizer("<image>", "<video>", "<|im_start|>", ends=CHATML, image_token="<image>", video_token="<video>")
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    processor = T.LlavaOnevisionProcessor(
        T.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=pinpoints),
        words,
        T.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chat("<image>\n"),
    )
    config = T.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=text(words, "qwen2"),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
    )
    return T.LlavaOnevisionForConditionalGeneration(config), processor


def qwen(version: str, images: dict[str, Any], vision: dict[str, Any], opening: str = "", **words_config: Any) -> Pair:
    marks = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    marks |= {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    words = tokenizer("<|im_start|>", *marks.values(), ends=CHATML)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    sizes = {key: value for key, value in text(words).items() if key != "model_type"}
    config = getattr(T, f"{version}Config")(
        text_config=sizes | {"rope_parameters": rope, **words_config},
        vision_config={"depth": 2, "num_heads": 2, **vision},
        **{name: words.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    kind = "Qwen3VL" if version == "Qwen3_5" else version  # has no processor of its own
    videos = T.Qwen3VLVideoProcessor() if kind == "Qwen3VL" else T.Qwen2VLVideoProcessor()
    template = chat("<|vision_start|><|image_pad|><|vision_end|>", opening=opening)
    processor = getattr(T, f"{kind}Processor")(T.Qwen2VLImageProcessor(**images), words, videos, template)
    processor.chat_template = template
    return getattr(T, f"{version}ForConditionalGeneration")(config), processor


def qwen2_vl() -> Pair:
    return qwen(
        "Qwen2VL", {"min_pixels": 784, "max_pixels": 3136}, {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    )


def qwen2_5_vl() -> Pair:
    vision = {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    return qwen("Qwen2_5_VL", {"min_pixels": 784, "max_pixels": 3136}, vision)


def qwen3_vl() -> Pair:
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }
    vision |= {"deepstack_visual_indexes": [0, 1]}
    sizes = {"shortest_edge": 1024, "longest_edge": 4096}
    return qwen("Qwen3VL", {"patch_size": 16, "size": sizes}, vision, head_dim=8)


def qwen3_5() -> Pair:
    """Return a model that thinks unless its template is told not to."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "num_position_embeddings": 16}
    sizes = {"shortest_edge": 1024, "longest_edge": 4096}
    opening = (
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n"
    )
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    layers = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "partial_rotary_factor": 0.5}
    images = {"patch_size": 16, "size": sizes}
    return qwen("Qwen3_5", images, vision, f"{opening}{{% endif %}}", **linear, **layers)


def idefics3(family: str = "Idefics3") -> Pair:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(
        *("<image>", "<fake_token_around_image>", "<global-img>", "<video>", *tiles),
        ends=("<|im_start|>", "<end_of_utterance>", "<|im_end|>"),
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    edges = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": SIDE}}
    template = chat("<image>", "{role}: ", "<end_of_utterance>\n")
    more = [] if family == "Idefics3" else [T.SmolVLMVideoProcessor(**edges)]
    images = getattr(T, f"{family}ImageProcessor")(**edges)
    processor = getattr(T, f"{family}Processor")(images, words, *more, image_seq_len=1, chat_template=template)
    config = getattr(T, f"{family}Config")(
        vision_config=dict(VISION),
        text_config=text(words),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
        scale_factor=2,
    )
    return getattr(T, f"{family}ForConditionalGeneration")(config), processor


def smolvlm() -> Pair:
    return idefics3("SmolVLM")


def gemma3() -> Pair:
    words = tokenizer(
        *("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"),
        ends=("<bos>", "<eos>", "<pad>"),
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    template = "{{ bos_token }}" + chat("<start_of_image>", "<start_of_turn>{role}\n", "<end_of_turn>\n")
    images = T.Gemma3ImageProcessor(size=SQUARE, image_seq_length=4)
    config = T.Gemma3Config(
        vision_config=siglip(),
        text_config=text(words, "gemma3_text", head_dim=8, sliding_window=64),
        mm_tokens_per_image=4,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
    )
    model = T.Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [words.eos_token_id, words.convert_tokens_to_ids("<end_of_turn>")]
    return model, T.Gemma3Processor(images, words, chat_template=template, image_seq_length=4)


def gemma4() -> Pair:
    marks = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    marks |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    words = tokenizer(*marks.values(), "<|video|>", "<|turn>", ends=("<bos>", "<turn|>", "<pad>"), **marks)
    index = words.convert_tokens_to_ids
    sight = {"patch_size": 2, "pooling_kernel_size": 2}
    vision = {key: value for key, value in VISION.items() if key != "image_size"} | sight
    vision |= {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 128}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8, "global_head_dim": 8}
    layers |= {"sliding_window": 64, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(words)}
    config = T.Gemma4Config(
        vision_config=vision,
        text_config=text(words, "gemma4_text", **layers),
        boi_token_id=index("<|image>"),
        eoi_token_id=index("<image|>"),
        image_token_id=index("<|image|>"),
        video_token_id=index("<|video|>"),
        audio_token_id=index("<|audio|>"),
    )
    images = T.Gemma4ImageProcessor(max_soft_tokens=70, **sight)
    template = "{{ bos_token }}" + chat("<|image|>", "<|turn>{role}\n", "<turn|>\n")
    parts = (T.Gemma4AudioFeatureExtractor(), images, words, T.Gemma4VideoProcessor())
    return T.Gemma4ForConditionalGeneration(config), T.Gemma4Processor(*parts, chat_template=template)


def internvl() -> Pair:
    words = tokenizer(
        *("<|im_start|>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        ends=CHATML,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = T.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    videos, template = T.InternVLVideoProcessor(size=SQUARE), chat("<IMG_CONTEXT>\n")
    config = T.InternVLConfig(
        vision_config=VISION | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        text_config=text(words, "qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    processor = T.InternVLProcessor(images, words, videos, image_seq_length=1, chat_template=template)
    return T.InternVLForConditionalGeneration(config), processor


def mllama() -> Pair:
    words = tokenizer(
        *("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"),
        ends=("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    )
    template = chat("<|image|>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
    images = T.MllamaImageProcessor(size=SQUARE, max_image_tiles=4)
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 2,
    }
    vision |= {"attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "max_num_tiles": 4}
    vision |= {"intermediate_layers_indices": [0, 1], "vision_output_dim": 48}
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    sizes = text(words, num_hidden_layers=3, cross_attention_layers=[1])
    del sizes["model_type"]
    config = T.MllamaConfig(
        vision_config=vision | {"supported_aspect_ratios": ratios},
        text_config=sizes,
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    processor = T.MllamaProcessor(images, words, chat_template="{{ bos_token }}" + template)
    return T.MllamaForConditionalGeneration(config), processor


def pixtral(family: str = "Llava", **more: Any) -> Pair:
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    images = T.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": PATCH, "width": PATCH})
    processor = T.PixtralProcessor(images, words, patch_size=PATCH, chat_template=INSTRUCTION, **more)
    vision = {"model_type": "pixtral", **VISION, "image_size": 56}
    strategy = {"vision_feature_select_strategy": "full"} if family == "Llava" else more
    config = getattr(T, f"{family}Config")(
        vision_config=vision,
        text_config=text(words, "mistral", head_dim=8),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        **strategy,
    )
    return getattr(T, f"{family}ForConditionalGeneration")(config), processor


def mistral3() -> Pair:
    return pixtral("Mistral3", spatial_merge_size=2)


def aya_vision() -> Pair:
    words = tokenizer(
        *("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE"),
        *("TILE_GLOBAL", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ends=("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<pad>"),
    )
    images = T.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    template = "{{ bos_token }}" + chat("<image>", "<|START_OF_TURN_TOKEN|>{role}: ", "<|END_OF_TURN_TOKEN|>")
    config = T.AyaVisionConfig(
        vision_config=siglip(),
        text_config=text(words, "cohere2", sliding_window=64),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        vision_feature_layer=-1,
        adapter_layer_norm_eps=1e-6,
    )
    sizes = {"patch_size": PATCH, "img_size": SIDE, "downsample_factor": 2}
    processor = T.AyaVisionProcessor(images, words, chat_template=template, **sizes)
    return T.AyaVisionForConditionalGeneration(config), processor


def glm4v() -> Pair:
    marks = (
        "<|image|>",
        "<|video|>",
        "<|begin_of_image|>",
        "<|end_of_image|>",
        "<|begin_of_video|>",
        "<|end_of_video|>",
    )
    words = tokenizer(*marks, "<|user|>", "<|assistant|>", "<sop>", ends=("[gMASK]", "<|endoftext|>", "<pad>"))
    index = words.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    sizes = {key: value for key, value in text(words).items() if key != "model_type"}
    vision = {"depth": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
    config = T.Glm4vConfig(
        text_config=sizes | {"rope_parameters": rope},
        vision_config=vision | {"image_size": SIDE, "patch_size": PATCH},
        image_token_id=index("<|image|>"),
        video_token_id=index("<|video|>"),
        image_start_token_id=index("<|begin_of_image|>"),
        image_end_token_id=index("<|end_of_image|>"),
        video_start_token_id=index("<|begin_of_video|>"),
        video_end_token_id=index("<|end_of_video|>"),
    )
    images = T.Glm4vImageProcessor(size={"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 56 * 56})
    template = "[gMASK]<sop>" + chat("<|begin_of_image|><|image|><|end_of_image|>", "<|{role}|>\n", "<|endoftext|>")
    processor = T.Glm4vProcessor(images, words, T.Glm4vVideoProcessor(), chat_template=template)
    return T.Glm4vForConditionalGeneration(config), processor


def deepseek_vl() -> Pair:
    words = tokenizer("<image_placeholder>", ends=("<bos>", "<eos>", "<pad>"), image_token="<image_placeholder>")
    images = T.DeepseekVLImageProcessor(size=SQUARE)
    template = "{{ bos_token }}" + chat("<image_placeholder>", "{role}: ", "<eos>")
    config = T.DeepseekVLConfig(
        vision_config=siglip(),
        text_config=text(words),
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    processor = T.DeepseekVLProcessor(images, words, chat_template=template, num_image_tokens=4)
    return T.DeepseekVLForConditionalGeneration(config), processor


def llama4() -> Pair:
    marks: tuple[str, ...] = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>")
    marks += ("<|tile_y_separator|>", "<|header_start|>", "<|header_end|>")
    words = tokenizer(*marks, ends=("<|begin_of_text|>", "<|eot|>", "<|finetune_right_pad|>"))
    index = words.convert_tokens_to_ids
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": PATCH, "vision_output_dim": 32}
    vision |= {"projector_input_dim": 32, "projector_output_dim": 32}
    experts = {"num_local_experts": 4, "intermediate_size_mlp": 64, "head_dim": 8}
    config = T.Llama4Config(
        vision_config=vision,
        text_config=text(words, "llama4_text", **experts),
        boi_token_index=index("<|image_start|>"),
        eoi_token_index=index("<|image_end|>"),
        image_token_index=index("<|patch|>"),
    )
    template = chat("<|image|>", "<|header_start|>{role}<|header_end|>\n\n", "<|eot|>")
    images = T.Llama4ImageProcessor(size=SQUARE, max_patches=4)
    processor = T.Llama4Processor(images, words, patch_size=PATCH, chat_template="{{ bos_token }}" + template)
    return T.Llama4ForConditionalGeneration(config), processor


def kimi() -> Pair:
    marks = ("<|media_pad|>", "<|kimi_k25_video_placeholder|>", "<|media_begin|>", "<|media_end|>", "<|im_user|>")
    words = tokenizer(*marks, "<|im_assistant|>", ends=("[BOS]", "<|im_end|>", "[PAD]"))
    index = words.convert_tokens_to_ids
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"patch_size": PATCH, "pos_emb_height": 4, "pos_emb_width": 4}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    experts |= {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
    config = T.Kimi_K25Config(
        vision_config=vision,
        text_config=text(words, "deepseek_v3", **latent, **experts),
        projection_hidden_size=16,
        image_token_id=index("<|media_pad|>"),
        video_token_id=index("<|kimi_k25_video_placeholder|>"),
        vision_start_token_id=index("<|media_begin|>"),
        vision_end_token_id=index("<|media_end|>"),
        tie_word_embeddings=False,
    )
    opening = "{% if thinking is defined and thinking is false %}<think></think>{% else %}<think>{% endif %}"
    template = chat("<|media_begin|>image<|media_pad|><|media_end|>", "<|im_{role}|>", "<|im_end|>", opening)
    images = T.Kimi_K25ImageProcessor(size={"max_height": 4, "max_width": 4}, max_patches=16)
    processor = T.Kimi_K25Processor(images, words, T.Kimi_K25VideoProcessor(), chat_template=template)
    return T.Kimi_K25ForConditionalGeneration(config), processor


def idefics2() -> Pair:
    words = tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>")
    images = T.Idefics2ImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 56}, do_image_splitting=False)
    processor = T.Idefics2Processor(images, words, image_seq_len=4)
    words.eos_token = "<end_of_utterance>"
    processor.chat_template = "{{ bos_token }}" + chat("<image>", "{role}: ", "<end_of_utterance>\n")
    perceiver = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
    config = T.Idefics2Config(
        vision_config=VISION | {"image_size": 56},
        perceiver_config=perceiver | {"resampler_head_dim": 8, "num_key_value_heads": 1},
        text_config=text(words, "mistral", head_dim=8),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    return T.Idefics2ForConditionalGeneration(config), processor


def cohere2_vision() -> Pair:
    marks = {"image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"}
    marks |= {"img_line_break_token": "<|IMG_LINE_BREAK|>"}
    turns = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
    words = tokenizer(*marks.values(), *turns, ends=("<BOS_TOKEN>", turns[1], "<PAD>"), **marks)
    images = T.Cohere2VisionImageProcessor(size=SQUARE, max_patches=4, patch_size=1)
    template = "{{ bos_token }}" + chat("<|IMG_PATCH|>", "<|START_OF_TURN_TOKEN|>{role}: ", "<|END_OF_TURN_TOKEN|>")
    config = T.Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=text(words, "cohere2", sliding_window=64),
        image_token_id=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )
    processor = T.Cohere2VisionProcessor(images, words, chat_template=template)
    return T.Cohere2VisionForConditionalGeneration(config), processor


def ovis2() -> Pair:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    words = tokenizer("<image>", "<IMG_ATOM>", *marks, "<|im_start|>", ends=CHATML)
    vision = {key: value for key, value in VISION.items() if key != "model_type"} | {"hidden_stride": 2}
    config = T.Ovis2Config(
        vision_config=vision | {"vocab_size": 48},
        text_config=text(words, "qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids([*marks]),
        vocab_size=len(words),
        hidden_size=32,
    )
    images = T.Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4)
    processor = T.Ovis2Processor(images, words, chat_template=chat("<image>\n"), image_seq_length=1)
    return T.Ovis2ForConditionalGeneration(config), processor


def lfm2_vl() -> Pair:
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    marks = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", "<|im_start|>", *tiles)
    words = tokenizer(*marks, ends=("<|startoftext|>", "<|im_end|>", "<|pad|>"))
    images = T.Lfm2VlImageProcessor(
        tile_size=56, encoder_patch_size=PATCH, max_tiles=4, min_image_tokens=1, max_image_tokens=4
    )
    sizes = {key: value for key, value in VISION.items() if key != "image_size"}
    config = T.Lfm2VlConfig(
        vision_config=sizes | {"model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False},
        text_config=text(words, "lfm2", layer_types=["conv", "full_attention"]),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
        tie_word_embeddings=False,
    )
    processor = T.Lfm2VlProcessor(images, words, chat_template="{{ bos_token }}" + chat("<image>"))
    return T.Lfm2VlForConditionalGeneration(config), processor


def paligemma(kind: str = "gemma", **more: Any) -> Pair:
    words = tokenizer("<image>", ends=("<bos>", "<eos>", "<pad>"), image_token="<image>")
    images = T.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 4
    config = T.PaliGemmaConfig(
        vision_config=siglip(projection_dim=32),
        text_config=text(words, kind, head_dim=8, **more),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return T.PaliGemmaForConditionalGeneration(config), T.PaliGemmaProcessor(images, words)


def paligemma2() -> Pair:
    return paligemma("gemma2", sliding_window=64)


def blip2(family: str = "Blip2", **language: Any) -> Pair:
    """Return a model whose images are read by a Q-Former, with a language model of OPT unless another is given."""
    ends = ("</s>", "</s>", "<pad>") if family == "Blip2" else ("<s>", "</s>", "<pad>")
    words = tokenizer("<image>", ends=ends)
    begin = TemplateProcessing(single=f"{ends[0]} $A", special_tokens=[(ends[0], words.bos_token_id)])
    words.backend_tokenizer.post_processor = begin
    opt = {"ffn_dim": 64, "word_embed_proj_dim": 32}
    reader = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(T, f"{family}Config")(
        vision_config=VISION | {"initializer_range": 0.2},
        qformer_config=reader | {"encoder_hidden_size": 16, "vocab_size": 64, "cross_attention_frequency": 1},
        text_config=language or text(words, "opt", **opt),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    readers = {}
    if family == "InstructBlip":
        letters = [":", "?", *(chr(code) for code in range(97, 123))]
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        readers = {"qformer_tokenizer": T.BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})}
    images = T.BlipImageProcessor(size=SQUARE)
    processor = getattr(T, f"{family}Processor")(images, words, **readers, num_query_tokens=4)
    return getattr(T, f"{family}ForConditionalGeneration")(config), processor


def instructblip() -> Pair:
    words = tokenizer("<image>")
    return blip2("InstructBlip", **text(words, num_key_value_heads=4))


def blip2_t5() -> Pair:
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 400}
    return blip2(model_type="t5", **sizes)


def florence2() -> Pair:
    words = tokenizer("<image>", image_token="<image>")
    images = T.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    stages = {"embed_dim": [8, 8, 8, 16], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2], "depths": [1, 1, 1, 1]}
    bart = {"model_type": "bart", "vocab_size": len(words), "d_model": 16, "is_encoder_decoder": True}
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 32}
    config = T.Florence2Config(
        vision_config=stages | {"patch_size": [7, 3, 3, 3], "window_size": 4, "projection_dim": 16},
        text_config=bart,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    return T.Florence2ForConditionalGeneration(config), T.Florence2Processor(images, words)


def git() -> Pair:
    words = tokenizer()
    config = T.GitConfig(
        vision_config=dict(VISION), vocab_size=len(words), num_attention_heads=2, num_hidden_layers=2, hidden_size=32
    )
    return T.GitForCausalLM(config), T.GitProcessor(T.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE), words)


FAMILIES: dict[str, Callable[[], Pair]] = {
    "LLaVA-1.5": llava,
    "LLaVA-NeXT": llava_next,
    "LLaVA-OneVision": llava_onevision,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "Qwen3.5": qwen3_5,
    "Idefics2": idefics2,
    "Idefics3": idefics3,
    "SmolVLM": smolvlm,
    "Gemma 3": gemma3,
    "Gemma 4": gemma4,
    "InternVL": internvl,
    "Mllama": mllama,
    "Llama 4": llama4,
    "Pixtral": pixtral,
    "Mistral 3": mistral3,
    "Aya Vision": aya_vision,
    "Command A Vision": cohere2_vision,
    "GLM-4V": glm4v,
    "DeepSeek-VL": deepseek_vl,
    "Kimi K2.5": kimi,
    "Ovis2": ovis2,
    "LFM2-VL": lfm2_vl,
    "PaliGemma": paligemma,
    "PaliGemma 2": paligemma2,
    "BLIP-2 (OPT)": blip2,
    "InstructBLIP": instructblip,
}
"""Families that CoDA takes: with a chat template, or with a plain prompt of their own, which are the last four."""
BROKEN: dict[str, tuple[type[Exception], str]] = {
    "Llama 4": (
        AttributeError,
        "transformers 5.24.0 fails in the model's own forward: its output has no attribute 'image_outputs'",
    )
}
"""Families that the installed library may fail on by itself, with the error and the reason."""
REFUSED: dict[str, tuple[Callable[[], Pair], str]] = {
    "BLIP-2 (T5)": (blip2_t5, "'blip-2' is an encoder-decoder"),
    "Florence-2": (florence2, "'florence2' is an encoder-decoder"),
    "GIT": (git, "The GitProcessor has no chat template, without which only PaliGemmaProcessor, "),
}
"""Families that it refuses, and a part of the sentence."""


def write(family: str, folder: Path) -> str:
    """Write a model and its processor as real ones are, and return their folder."""
    build = FAMILIES[family] if family in FAMILIES else REFUSED[family][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build()
        for name, parameter in model.named_parameters():  # gates and projectors that begin closed hide the pictures
            if "bias" not in name and not parameter.any():
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
