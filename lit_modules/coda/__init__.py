"""CoDA: confusable pairs, contrastive synthetic images of them, and the update of a model on these."""

from typing import TYPE_CHECKING

from lit_modules.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lit_modules.coda.augmentation.armada_lite import ArmadaLite, EditResult, EditSettings
    from lit_modules.coda.augmentation.confusable_pairs import (
        ConfusionTable,
        confusion_questions,
        draw_subset,
        load_tables,
        merge_pairs,
        options_question,
        save_pairs,
    )
    from lit_modules.coda.augmentation.export import export_images
    from lit_modules.coda.augmentation.features import FeatureAnswer, extract_features, feature_request
    from lit_modules.coda.augmentation.generation import image_prompt, negative_prompt, plan_images
    from lit_modules.coda.augmentation.pipeline import CoDAPipeline, Estimate, PipelineResult, UnitResult, store_counts
    from lit_modules.coda.augmentation.report import write_report
    from lit_modules.coda.augmentation.scores import (
        AttributeScores,
        Selection,
        attribute_groups,
        discriminability_scores,
        discriminability_values,
        generability_scores,
        rank_references,
        select_discriminative,
        select_generable,
        similarities,
        trial_count,
    )
    from lit_modules.coda.augmentation.settings import CoDASettings, preset
    from lit_modules.coda.augmentation.verification import accept_images, image_score, verification_requests
    from lit_modules.coda.backends.local import ClipEmbedder, DiffusersEdits, DiffusersImages, LocalChat
    from lit_modules.coda.backends.protocols import (
        BackendError,
        BudgetExhausted,
        Capabilities,
        ChatModel,
        ChatRequest,
        Embedder,
        ImageEditor,
        ImageGenerator,
        ImageRequest,
        Prices,
        Reply,
        Usage,
    )
    from lit_modules.coda.backends.remote import BoundedEndpoint, Budget, RemoteChat, RemoteImages
    from lit_modules.coda.classifier_update import ClassifierUpdate
    from lit_modules.coda.coda import CoDA
    from lit_modules.coda.core.answers import (
        MalformedAnswer,
        normalise_answer,
        parse_bits,
        parse_features,
        parse_yes_no,
        read_answer,
    )
    from lit_modules.coda.core.concepts import Concept, ConfusablePair, PairTask, safe_name
    from lit_modules.coda.core.images import perceptual_hash, picture_problem
    from lit_modules.coda.core.store import Store, StoreInUse
    from lit_modules.coda.in_context import InContext
    from lit_modules.utils.images import read_picture
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
    "safe_name",
    "save_pairs",
    "select_discriminative",
    "select_generable",
    "similarities",
    "store_counts",
    "trial_count",
    "verification_requests",
    "write_report",
]
