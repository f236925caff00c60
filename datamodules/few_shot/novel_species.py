"""NovelSpecies: photographs of animal species that were described recently."""

from .few_shot import FewShotPairs


class NovelSpecies(FewShotPairs):
    """NovelSpecies: animals described so recently that no model has seen them, each with the one it is taken for.

    Nothing is downloaded. The pictures are those of the Hugging Face dataset ``uclanlp/CoDA``, in the tree that its
    page shows: ``{train,val}/NovelSpecies/CLASS/images``. The Parquet files of that dataset have no labels, and are
    refused unless their stored paths name the classes. The pairs depend on the model; ``pairs.json`` lists them. The
    licences are those of the single pictures.

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
