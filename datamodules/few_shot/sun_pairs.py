"""Pairs of SUN's scenes that a model confuses."""

from .few_shot import FewShotPairs


class SUNPairs(FewShotPairs):
    """Pairs of SUN's scenes that a model confuses.

    Nothing is downloaded. ``root`` holds folders below their first letter, such as ``c/campus`` and
    ``s/stadium/football``, with or without splits, or the published tree ``{train,val}/SUN/LETTER/CLASS/images``.
    Any tree of this form is read, not SUN397 alone. The pictures may be used for research.

    Arguments and batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`; SUN397 has no splits, so
    give ``query_from="train"``, which keeps training pictures back.

    References:
        Xiao et al., "SUN Database: Large-scale Scene Recognition from Abbey to Zoo", CVPR 2010.
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home = "data/sun_pairs"
    kind = "scene"
