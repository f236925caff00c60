"""Contrastive augmentation: features, scores, synthetic images, verification."""
