"""CoDA: finding confused pairs, and contrastive synthetic images of them; each stage on tensors and lists, or all."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.coda.augmentation.armada_lite import ArmadaLite, EditResult, ImageEditor
    from lit_modules.coda.augmentation.confusable_pairs import (
        ConfusionTable,
        confusion_questions,
        draw_subset,
        load_tables,
        merge_pairs,
        options_question,
        save_pairs,
    )
    from lit_modules.coda.augmentation.discriminability import (
        AttributeScores,
        discriminability_scores,
        discriminability_values,
    )
    from lit_modules.coda.augmentation.edit_requests import EditSettings
    from lit_modules.coda.augmentation.estimate import Estimate, Prices
    from lit_modules.coda.augmentation.export import export_images
    from lit_modules.coda.augmentation.features import FeatureAnswer, extract_features, feature_request
    from lit_modules.coda.augmentation.generability import attribute_groups, generability_scores, trial_count
    from lit_modules.coda.augmentation.generation import image_prompt, negative_prompt, plan_images
    from lit_modules.coda.augmentation.inputs import PairTask
    from lit_modules.coda.augmentation.parsing import MalformedAnswer, parse_bits, parse_features, parse_yes_no
    from lit_modules.coda.augmentation.pipeline import CoDAPipeline, PipelineResult, UnitResult, store_counts
    from lit_modules.coda.augmentation.presets import CoDASettings, preset
    from lit_modules.coda.augmentation.ranking import rank_references, reference_scores, similarities
    from lit_modules.coda.augmentation.report.page import write_report
    from lit_modules.coda.augmentation.selection import Selection, select_discriminative, select_generable
    from lit_modules.coda.augmentation.verification import accept_images, image_score, verification_requests
    from lit_modules.coda.backends.bounded_endpoint import BoundedEndpoint, Budget
    from lit_modules.coda.backends.editing import DiffusersEdits
    from lit_modules.coda.backends.local import ClipEmbedder, DiffusersImages, LocalChat
    from lit_modules.coda.backends.protocols import (
        BackendError,
        BudgetExhausted,
        Capabilities,
        ChatModel,
        ChatRequest,
        Embedder,
        ImageGenerator,
        ImageRequest,
        Reply,
        Usage,
    )
    from lit_modules.coda.backends.remote import RemoteChat, RemoteImages
    from lit_modules.coda.classifier_update import ClassifierUpdate
    from lit_modules.coda.coda import CoDA
    from lit_modules.coda.core.answers import normalise_answer, read_answer
    from lit_modules.coda.core.concepts import Concept, ConfusablePair, safe_name, unique_pairs
    from lit_modules.coda.core.pictures import perceptual_hash, picture_problem, read_picture
    from lit_modules.coda.core.store import Store, StoreInUse
    from lit_modules.coda.in_context import InContext
else:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "ArmadaLite",
    "AttributeScores",
    "BackendError",
    "BoundedEndpoint",
    "Budget",
    "BudgetExhausted",
    "Capabilities",
    "ChatModel",
    "ChatRequest",
    "ClassifierUpdate",
    "ClipEmbedder",
    "CoDA",
    "CoDAPipeline",
    "CoDASettings",
    "Concept",
    "ConfusablePair",
    "ConfusionTable",
    "DiffusersEdits",
    "DiffusersImages",
    "EditResult",
    "EditSettings",
    "Embedder",
    "Estimate",
    "FeatureAnswer",
    "ImageEditor",
    "ImageGenerator",
    "ImageRequest",
    "InContext",
    "LocalChat",
    "MalformedAnswer",
    "PairTask",
    "PipelineResult",
    "Prices",
    "RemoteChat",
    "RemoteImages",
    "Reply",
    "Selection",
    "Store",
    "StoreInUse",
    "UnitResult",
    "Usage",
    "accept_images",
    "attribute_groups",
    "confusion_questions",
    "discriminability_scores",
    "discriminability_values",
    "draw_subset",
    "export_images",
    "extract_features",
    "feature_request",
    "generability_scores",
    "image_prompt",
    "image_score",
    "load_tables",
    "merge_pairs",
    "negative_prompt",
    "normalise_answer",
    "options_question",
    "parse_bits",
    "parse_features",
    "parse_yes_no",
    "perceptual_hash",
    "picture_problem",
    "plan_images",
    "preset",
    "rank_references",
    "read_answer",
    "read_picture",
    "reference_scores",
    "safe_name",
    "save_pairs",
    "select_discriminative",
    "select_generable",
    "similarities",
    "store_counts",
    "trial_count",
    "unique_pairs",
    "verification_requests",
    "write_report",
]
