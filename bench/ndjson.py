"""Files with a document or a vector a line, for `ragged import` and `ragged bench`."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy
import orjson

import vector_set

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


def write_documents(path: Path, vectors: numpy.ndarray, texts: Iterable[dict] | None = None) -> None:
    """A document's id is the number of its row. Without texts it has but that number; a text may have a title."""
    draws = vector_set.draws(len(vectors))
    with path.open("wb") as file:
        for row, text in enumerate(texts or ({"text": str(row)} for row in range(len(vectors)))):
            document = {"id": str(row), **text, "metadata": {"draw": float(draws[row])}, "vector": vectors[row]}
            file.write(orjson.dumps(document, option=OPTIONS))
        # What is still being written to the disk would be counted as import.
        file.flush()
        os.fsync(file.fileno())


def write_vectors(path: Path, vectors: numpy.ndarray) -> None:
    with path.open("wb") as file:
        for vector in vectors:
            file.write(orjson.dumps([round(float(value), 6) for value in vector], option=OPTIONS))
