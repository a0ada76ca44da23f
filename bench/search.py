"""Measures searches end to end, in each mode and by different numbers of clients.

Usage: search.py COLLECTION WORK_DIR OUT.json [DATASET_DIR]      the environment as in bench/search

With a dataset, the queries are phrases of its documents, none of which is asked twice, so that each is embedded; and then its own queries, which
are asked again and again. Without one, they are titles of documents, as `ragged bench` takes them.
"""

import gzip
import json
import os
import random
import sys
from pathlib import Path

import report
from node import load

MODES = ["dense", "text", "hybrid"]
CLIENT_NUMBERS = [1, 16, 100]
PHRASES, PHRASE_WORDS = 50_000, 9

collection, work, out, dataset = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
seconds = float(os.environ.get("SECONDS_EACH", "10"))
chance = random.Random(7)


def texts(folder: Path) -> list[list[str]]:
    """The words of each document that has enough of them for a phrase."""
    with gzip.open(folder / "docs.jsonl.gz", "rt") as file:
        words = [json.loads(line)["text"].split() for line in file]
    return [text for text in words if len(text) > PHRASE_WORDS]


def phrases(documents: list[list[str]]) -> Path:
    """A file with as many phrases as no measurement uses up."""
    path = work / "phrases.jsonl"
    with path.open("w") as file:
        for _ in range(PHRASES):
            words = chance.choice(documents)
            begin = chance.randrange(len(words) - PHRASE_WORDS)
            file.write(json.dumps({"text": " ".join(words[begin : begin + PHRASE_WORDS])}) + "\n")
    return path


def measure(mode: str, clients: int, queries: str, options: dict) -> dict:
    return {**load(collection, clients, seconds, mode=mode, **options), "queries": queries}


runs = []
if dataset:
    documents = texts(Path(dataset[0]))
    runs += [measure(mode, clients, "new", {"queries": phrases(documents)}) for mode in MODES for clients in CLIENT_NUMBERS]
    own = {"queries": Path(dataset[0]) / "queries.jsonl.gz"}
    runs += [measure(mode, 16, "repeated", own) for mode in MODES]
else:
    runs += [measure(mode, clients, "repeated", {}) for mode in MODES for clients in CLIENT_NUMBERS]

report.row("queries, mode and clients", "searches/s", "p50, ms", "p95, ms", "p99, ms")
for run in runs:
    report.row(f"{run['queries']}, {run['mode']}, {run['clients']} clients", *report.throughput_and_latency(run))
report.write(out, {"collection": collection, "seconds_each": seconds, "runs": runs})
