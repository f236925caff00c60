"""What the tests of CoDA share: a tiny LLaVA-NeXT in a folder."""

import pytest

from tests.coda.tiny_llava import write


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a LLaVA-NeXT of a few hidden units, with the processor that belongs to it."""
    return write(tmp_path_factory.mktemp("llava"))
