"""Pairs of iNaturalist's species that a model confuses."""

from .few_shot import FewShotPairs


class INaturalistPairs(FewShotPairs):
    """Pairs of iNaturalist's species that a model confuses.

    Nothing is downloaded. ``root`` holds the folders of iNaturalist 2021, such as ``05129_Animalia_..._Vipera_berus``,
    in ``train_mini`` and ``val``, or the published tree ``{train,val}/iNaturalist/CLASS/images``; folders
    ``SUPERCATEGORY/SPECIES``, as in 2017, are read too. A part of the classes is enough. The official pair file is read
    as it is. Where a pair gives no name, ``annotations`` does, else genus and species. The pictures may be used for
    research, under the licences of their authors.

    Arguments and batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`; where there are no
    pictures for validation, ``query_from="train"`` keeps training pictures back.

    References:
        Van Horn et al., "Benchmarking Representation Learning for Natural World Image Collections", arXiv 2103.16483.
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home = "data/inaturalist_pairs"
    kind = "animal"
