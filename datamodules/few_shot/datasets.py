"""NovelSpecies, and the pairs of iNaturalist and SUN that a model confuses."""

from .few_shot import FewShotPairs


class NovelSpecies(FewShotPairs):
    """NovelSpecies: animals described so recently that no model has seen them, each with the one it is taken for.

    ``download: true`` gets the Parquet files of ``bryanzhou008/NovelSpecies``, which the paper's first author published
    on the Hugging Face Hub (224 MB), and whose classes its labels or its card name; a folder of them is read as well.
    So is the tree that the page of ``uclanlp/CoDA`` shows, ``{train,val}/NovelSpecies/CLASS/images``. The Parquet files
    of the latter have no labels, and are refused unless their stored paths name the classes. The pairs depend on the
    model; ``pairs.json`` lists them, and ``lit-modules coda pairs`` finds them. The licences are those of the single
    pictures.

    Arguments and batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`; the paper trains on 5 real
    pictures of each species, beside none, 1, 3 or 5 synthetic ones.

    Example:
        >>> NovelSpecies(n_real=5, n_synthetic=3, method="crop").root
        PosixPath('data/novel_species')

    References:
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home = "data/novel_species"
    kind = "animal"
    hub = "bryanzhou008/NovelSpecies"
    licence = "those of the single pictures"


class INaturalistPairs(FewShotPairs):
    """Pairs of iNaturalist's species that a model confuses.

    ``root`` holds the folders of iNaturalist 2021, such as ``05129_Animalia_..._Vipera_berus``, in ``train_mini`` and
    ``val``, or the published tree ``{train,val}/iNaturalist/CLASS/images``; folders ``SUPERCATEGORY/SPECIES``, as in
    2017, are read too. ``download: true`` gets the Parquet files of ``bryanzhou008/iNaturalist-CoDA-Subset``, which the
    paper's first author published on the Hugging Face Hub. A part of the classes is enough. The official pair file is
    read as it is. Where a pair gives no name, ``annotations`` does, else genus and species. The pictures may be used
    for research, under the licences of their authors.

    Arguments and batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`; where there are no
    pictures for validation, ``query_from="train"`` holds out training pictures.

    References:
        Van Horn et al., "Benchmarking Representation Learning for Natural World Image Collections", arXiv 2103.16483.
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home = "data/inaturalist_pairs"
    kind = "animal"
    hub = "bryanzhou008/iNaturalist-CoDA-Subset"
    licence = "those of the pictures' authors, for research"


class SUNPairs(FewShotPairs):
    """Pairs of SUN's scenes that a model confuses.

    Nothing is downloaded. ``root`` holds folders below their first letter, such as ``c/campus`` and
    ``s/stadium/football``, with or without splits, or the published tree ``{train,val}/SUN/LETTER/CLASS/images``.
    Any tree of this form is read, not SUN397 alone. The pictures may be used for research.

    Arguments and batches are those of :class:`~datamodules.few_shot.few_shot.FewShotPairs`; SUN397 has no splits, so
    give ``query_from="train"``, which holds out training pictures.

    References:
        Xiao et al., "SUN Database: Large-scale Scene Recognition from Abbey to Zoo", CVPR 2010.
        Zhou et al., "Contrastive Visual Data Augmentation", arXiv 2502.17709.
    """

    home = "data/sun_pairs"
    kind = "scene"
    licence = "none that is stated; for research"
