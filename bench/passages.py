"""Cuts documents into passages about as long as the model reads.

Usage: passages.py DOCS_JSONL_GZ PASSAGES_JSONL_GZ
"""

import gzip
import json
import math
import sys
from collections.abc import Iterator

# Some 230 tokens of English; the model reads 256.
CHARACTERS_MAX = 1000
# What is shorter says too little to be found.
CHARACTERS_MIN = 80

source, target = sys.argv[1:]


def passages(text: str) -> Iterator[str]:
    """Parts of about the same length that end between words."""
    words = text.split(" ")
    wanted = len(text) / math.ceil(len(text) / CHARACTERS_MAX)
    begin, length = 0, 0
    for end, word in enumerate(words, 1):
        length += len(word) + 1
        if length >= wanted or end == len(words):
            yield " ".join(words[begin:end])
            begin, length = end, 0


with gzip.open(source, "rt") as documents, gzip.open(target, "wt", compresslevel=3) as file:
    for line in documents:
        document = json.loads(line)
        for number, passage in enumerate(passages(document["text"])):
            if len(passage) >= CHARACTERS_MIN:
                entry = {"id": f"{document['id']}#{number}", "title": document["title"], "text": passage}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
