"""Which arguments of the few-shot data are allowed, and together."""

from collections.abc import Mapping
from typing import Any, get_args

from .layouts import Layout
from .samples import METHODS, READ_METHODS
from .sets import Mix


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if an argument is out of its range or two contradict each other."""
    choices: dict[str, tuple[Any, ...]] = {
        "method": METHODS,
        "sampling": ("fixed", "probability"),
        "query_from": ("auto", "validation", "test", "train"),
        "preset": ("default", "official"),
        "mix": get_args(Mix),
        "layout": get_args(Layout),
    }
    for name, allowed in choices.items():
        if given[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {given[name]!r}.")
    least = {
        "n_real": 0,
        "n_synthetic": 0,
        "n_context": 0,
        "n_source": 1,
        "n_query": 1,
        "n_validation": 1,
        "n_orders": 1,
        "n_way": 2,
        "image_size": 2,
    }
    least |= {"max_pixels": 4, "batch_size": 1, "eval_batch_size": 1, "num_workers": 0}
    for name, bound in least.items():
        if given[name] is not None and given[name] < bound:
            raise ValueError(f"{name} must be at least {bound}, got {given[name]}.")
    if given["n_real"] + given["n_synthetic"] < 1:
        raise ValueError("n_real and n_synthetic must not both be 0; nothing would be left to train on.")
    if given["n_way"] == 2 and given["n_orders"] > 2:
        raise ValueError(f"n_orders must be at most 2 for two options, got {given['n_orders']}.")
    if not 0 <= given["synthetic_probability"] <= 1:
        raise ValueError(f"synthetic_probability must be from 0 to 1, got {given['synthetic_probability']}.")
    if given["replay_ratio"] < 0 or (given["replay_ratio"] > 0) != (given["replay_pairs"] is not None):
        raise ValueError(
            f"replay_ratio must be positive with replay_pairs and 0 without, got {given['replay_ratio']} and "
            f"{given['replay_pairs']!r}."
        )
    method, number = given["method"], given["n_synthetic"]
    if (method == "real") != (number == 0):
        raise ValueError(
            f"method {method!r} goes with {'n_synthetic 0' if method == 'real' else 'a positive n_synthetic'}, "
            f"got {number}."
        )
    if method in READ_METHODS and given["synthetic_root"] is None:
        raise ValueError(f"method {method!r} needs synthetic_root, the folder of the pictures; got None.")
    if method == "armada_lite" and given["synthetic_kind"] not in (None, "armada_lite"):
        raise ValueError(f"method 'armada_lite' has a kind of its own; got synthetic_kind {given['synthetic_kind']!r}.")
    if method not in ("real", *READ_METHODS) and not (given["n_source"] or given["n_real"]):
        raise ValueError(f"method {method!r} with n_real 0 needs n_source, the number of pictures to change; got None.")
    if given["sampling"] == "probability" and (method == "real" or not given["n_real"]):
        raise ValueError("sampling 'probability' needs real pictures and others that replace them.")
    for name in ("question", "eval_question"):
        if given[name] is not None and "{options}" not in given[name]:
            raise ValueError(f"{name} must have the place '{{options}}', got {given[name]!r}.")
    if given["feature_context"] and given["features"] is None:
        raise ValueError("feature_context needs features, the file of the attributes; got None.")
    if given["n_context"] > given["n_real"]:
        raise ValueError(
            f"n_context must be at most n_real, {given['n_real']}, as examples are supports; got {given['n_context']}."
        )
    if given["n_context"] and given["image_size"] is not None:
        raise ValueError(f"n_context is for models that read texts: leave image_size out, got {given['image_size']}.")
    if given["mix"] != "none" and given["image_size"] is None:
        raise ValueError(f"mix {given['mix']!r} needs image_size, as it is for classifiers; got None.")
