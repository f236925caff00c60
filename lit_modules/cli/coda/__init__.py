"""Commands of ``lit-modules coda``."""
