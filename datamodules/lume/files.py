"""Files of invented benchmarks in the shape of LUME."""

import hashlib
import json
from pathlib import Path

from lit_modules.utils.files import write_whole
from lit_modules.utils.hashing import hash_file

from ..common.checks import check_at_least
from .generator import Inventor

FILES = ("forget.jsonl", "retain.jsonl", "nonmembers.jsonl", "semeval_mia_ids.json")
MANIFEST = "manifest.json"


def generate_lume(num_documents: int = 8, seed: int = 0, story_sentences: int = 4) -> dict[str, str]:
    """Invent a benchmark: the files of LUME, and the documents of the membership attack.

    ``forget.jsonl`` and ``retain.jsonl`` have LUME's fields, ids and quirks; ``nonmembers.jsonl`` holds biographies
    made by the rules of Task3; ``semeval_mia_ids.json`` lists the members, the Task3 documents of the forget set. No
    two documents share a person, so each question belongs to one document. The result depends on the arguments and on
    the word lists of the ``faker`` package, and not on the global random state.

    Args:
        num_documents: Documents of each set and task, and non-members.
        seed: Seed.
        story_sentences: Sentences of a story, at least 4.

    Returns:
        The text of each file by its name.

    Raises:
        ValueError: If a number is too small, or ``num_documents`` exhausts the word lists.

    Example:
        >>> sorted(generate_lume(num_documents=1))
        ['forget.jsonl', 'nonmembers.jsonl', 'retain.jsonl', 'semeval_mia_ids.json']
    """
    check_arguments(num_documents, story_sentences)
    inventor = Inventor(seed, story_sentences=story_sentences)
    inventions = (inventor.story, inventor.private_person, inventor.public_person)
    documents = {
        name: [invent() for invent in inventions for _ in range(num_documents)] for name in ("forget", "retain")
    }
    others = [inventor.public_person() for _ in range(num_documents)]
    members = [document.id for document in documents["forget"] if document.task == "Task3"]
    files = {
        f"{name}.jsonl": _lines([row for item in items for row in item.rows()]) for name, items in documents.items()
    }
    files["nonmembers.jsonl"] = _lines([{"id": document.id, "document": document.text} for document in others])
    files["semeval_mia_ids.json"] = json.dumps({"member_document_ids": members}, indent=1) + "\n"
    return files


def write_lume(folder: str | Path, num_documents: int = 8, seed: int = 0, story_sentences: int = 4) -> None:
    """Write the files of :func:`generate_lume`, and ``manifest.json``, which records the arguments.

    Files that are there stay as they are; each file appears whole or not at all. The same arguments give the same
    bytes.

    Raises:
        ValueError: If a number is out of its range, or the folder holds other files of these names.
    """
    check_arguments(num_documents, story_sentences)
    folder = Path(folder)
    arguments = {"num_documents": num_documents, "seed": seed, "story_sentences": story_sentences}
    if (folder / MANIFEST).is_file() and _is_complete(folder, arguments):
        return
    files = generate_lume(**arguments)
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    missing = [name for name in FILES if not (folder / name).exists()]
    for name in FILES:
        if name not in missing and hash_file(folder / name) != sums[name]:
            raise ValueError(f"{folder / name} must be a file of {arguments}, got another one; give another folder.")
    for name in missing:
        write_whole(folder / name, files[name])
    write_whole(folder / MANIFEST, json.dumps({**arguments, "sha256": sums}, indent=1) + "\n")


def check_arguments(num_documents: int, story_sentences: int) -> None:
    """Raise a ``ValueError`` if a number is too small."""
    check_at_least(1, num_documents=num_documents)
    check_at_least(4, story_sentences=story_sentences)


def _is_complete(folder: Path, arguments: dict[str, int]) -> bool:
    """Check a manifest against what is asked for and what is there; return whether nothing is missing."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded = {name: manifest[name] for name in arguments}
        sums = {name: manifest["sha256"][name] for name in FILES}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be the manifest that SyntheticLUME writes; give another folder.") from error
    if recorded != arguments:
        raise ValueError(
            f"{folder} holds a benchmark of {recorded}, and {arguments} was asked for; give another folder."
        )
    present = [name for name in FILES if (folder / name).is_file()]
    for name in present:
        if hash_file(folder / name) != sums[name]:
            raise ValueError(f"{folder / name} was changed after it was written; remove it to write it again.")
    return len(present) == len(FILES)


def _lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
