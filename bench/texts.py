"""Measures a node with texts and vectors: its memory, recall, and each mode of search.

Usage: texts.py COUNT WORK_DIR OUT.json (DOCS_JSONL_GZ VECTORS_DIR)...      the environment as in bench/texts
"""

import gzip
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy

import ndjson
import report
import vector_set
from node import Collection, Node
from vector_set import DEPTH, DIMENSION, Truth

RECALL = 0.95
CLIENT_NUMBERS = [1, 16, 100]
# Of a copy, so many words are replaced by words of other texts.
WORDS_REPLACED = 0.1

count, work, out = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sources = [(Path(documents), Path(vectors)) for documents, vectors in zip(sys.argv[4::2], sys.argv[5::2])]
seconds = float(os.environ.get("SECONDS_EACH", "10"))
cores = os.cpu_count() or 1


def read_texts(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        entries = [json.loads(line) for line in file]
    return [{"title": entry["title"], "text": entry["text"]} for entry in entries]


def with_noisy_copies(real: list[dict]) -> Iterator[dict]:
    """The first `count` of the real texts, then of copies of all of them, again and again."""
    chance = random.Random(7)
    words = [word for text in chance.sample(real, min(len(real), 2000)) for word in text["text"].split(" ")]
    for row in range(count):
        text = real[row % len(real)]
        if row >= len(real):
            copy = text["text"].split(" ")
            for place in chance.sample(range(len(copy)), round(len(copy) * WORDS_REPLACED)):
                copy[place] = chance.choice(words)
            text = {**text, "text": " ".join(copy)}
        yield text


real = [text for documents, _ in sources for text in read_texts(documents)]
real_vectors = numpy.vstack([vector_set.read(vectors / "documents.f32") for _, vectors in sources])
if len(real) != len(real_vectors):
    raise ValueError(f"{len(real)} texts have {len(real_vectors)} vectors")
vectors = vector_set.with_copies(real_vectors, count)
# Users ask about both: in turns, not first all about the one.
questions = numpy.vstack([vector_set.read(vectors / "questions.f32") for _, vectors in sources])
question_words = [line for _, vectors in sources for line in (vectors / "questions.jsonl").read_text().splitlines(keepends=True)]
order = numpy.random.default_rng(9).permutation(len(questions))
questions = questions[order]
(work / "questions.jsonl").write_text("".join(question_words[number] for number in order))
ndjson.write_vectors(work / "questions.ndjson", questions)
copies = f", of which {count - len(real):,} are noisy copies" if count > len(real) else ""
report.note(f"{count:,} texts with vectors{copies}; {len(questions):,} questions, {cores} cores")

node = Node()
memory = {"without data": node.memory()}
collection = Collection(node, "texts", DIMENSION)
lines = work / "documents.ndjson"
ndjson.write_documents(lines, vectors, with_noisy_copies(real))
imported_bytes = lines.stat().st_size
filled = collection.fill(lines, count, questions[0].tolist())
lines.unlink()
memory |= filled.pop("memory")
truth = Truth(vectors, questions)
searches = [{"vector": one.tolist(), "limit": DEPTH, "recall": RECALL} for one in questions]
recall_at_first = truth.recall_of_ids(collection.found_at_first(searches))
recall = truth.recall_of_ids(collection.found(searches))

by_meaning = {"vectors": work / "questions.ndjson", "recall": RECALL}
by_words = {"queries": work / "questions.jsonl"}
MODES = {"dense": by_meaning, "text": by_words, "hybrid": by_meaning | by_words}
runs = []
for mode, options in MODES.items():
    for clients in CLIENT_NUMBERS:
        runs.append({**collection.load(clients, seconds, mode=mode, **options), "mode": mode})
memory["after searches"] = node.memory()
parts = node.memory_parts()


def imbalance(mode: str) -> float:
    """p95 at the most clients by p50 at one, by the ratio of clients to cores: 1 when waiting for a core is all that many clients add."""
    one, *_, many = [run for run in runs if run["mode"] == mode]
    return many["latency_ms"]["p95"] / one["latency_ms"]["p50"] / (many["clients"] / cores)


report.note(
    f"imported in {filled['imported_s']:.1f} s ({filled['imported_per_s']:,} documents/s, {imported_bytes / 1e9:.2f} GB), indexed after"
    f" {filled['indexed_s']:.1f} s, at rest after {filled['rest_s']:.1f} s; recall@10 {recall:.3f}, and {recall_at_first:.3f} before the node had seen what is asked for"
)
report.row("memory", "resident", "anonymous", "mapped files", "most so far")
for stage, sizes in memory.items():
    report.row(stage, *(report.megabytes(sizes[name]) for name in ("resident", "anonymous", "mapped", "most")))
report.row("searches", "searches/s", "p50, ms", "p95, ms", "p99, ms")
for run in runs:
    report.row(f"{run['mode']}, {run['clients']} clients", *report.throughput_and_latency(run))
ratios = {mode: round(imbalance(mode), 3) for mode in MODES}
said = ", ".join(f"{mode} {ratio:.2f}" for mode, ratio in ratios.items())
report.note(f"p95 of {CLIENT_NUMBERS[-1]} clients by p50 of one by clients to cores: {said}")
report.write(
    out,
    {
        "texts": count,
        "real_texts": min(count, len(real)),
        "noise": vector_set.NOISE if count > len(real) else None,
        "words_replaced": WORDS_REPLACED if count > len(real) else None,
        "questions": len(questions),
        "seconds_each": seconds,
        "filled": filled,
        "imported_bytes": imported_bytes,
        "recall": round(recall, 4),
        "recall_at_first": round(recall_at_first, 4),
        "memory": memory,
        "memory_parts": parts,
        "runs": runs,
        "imbalance": ratios,
    },
)
