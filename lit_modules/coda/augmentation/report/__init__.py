"""Report page of an augmentation run."""
