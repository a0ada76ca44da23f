"""Measures imports and searches in collections of different sizes, one after the other in the same node.

Usage: scaling.py VECTORS_DIR WORK_DIR OUT.json      the environment as in bench/scaling
"""

import os
import statistics
import sys
from pathlib import Path

import ndjson
import report
import vector_set
from node import Collection, Node
from vector_set import DEPTH, DIMENSION, Truth

CLIENTS = 16
RECALL = 0.95
# Small collections are imported several times: documents in all, and times.
IMPORTED_AT_LEAST, TIMES_MAX = 100_000, 5

folder, work, out = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sizes = sorted(int(size) for size in os.environ.get("SIZES", "10000 100000").split())
seconds = float(os.environ.get("SECONDS_EACH", "10"))

questions = vector_set.read(folder / "questions.f32")
documents = vector_set.with_copies(vector_set.read(folder / "documents.f32"), sizes[-1])
vectors = work / "questions.ndjson"
ndjson.write_vectors(vectors, questions)
node = Node()


def measure(size: int) -> dict:
    lines = work / "documents.ndjson"
    ndjson.write_documents(lines, documents[:size])
    times = max(1, min(TIMES_MAX, IMPORTED_AT_LEAST // size))
    filled = []
    for number in range(times):
        collection = Collection(node, f"size-{size}-{number}", DIMENSION)
        filled.append(collection.fill(lines, size, questions[0].tolist()))
        if number < times - 1:
            collection.delete()
    lines.unlink()
    truth = Truth(documents[:size], questions)
    searches = [{"vector": one.tolist(), "limit": DEPTH, "recall": RECALL} for one in questions]
    collection.found_at_first(searches)
    recall = truth.recall_of_ids(collection.found(searches))
    many, one = (collection.load(clients, seconds, vectors=vectors, mode="dense", recall=RECALL) for clients in (CLIENTS, 1))
    resident = node.memory()["resident"]
    collection.delete()
    return {
        **{name: statistics.median(one[name] for one in filled) for name in filled[0] if name != "memory"},
        "imports": filled,
        "recall": round(recall, 4),
        "searches_per_s": round(many["throughput_per_s"]),
        "searches_per_s_one": round(one["throughput_per_s"]),
        "latency_ms": many["latency_ms"],
        "latency_ms_one": one["latency_ms"],
        "resident": resident,
    }


runs = [measure(size) for size in sizes]
report.row("documents", "imported/s", "cost", "indexed, s", "at rest, s", "processor, us")
for run in runs:
    run["import_cost_ratio"] = round(runs[0]["imported_per_s"] / run["imported_per_s"], 3)
    times = [f"{run['indexed_s']:.1f}", f"{run['rest_s']:.1f}", f"{run['processor_us_per_document']:.0f}"]
    report.row(f"{run['documents']:,}", f"{run['imported_per_s']:,.0f}", f"{run['import_cost_ratio']:.2f}", *times)
report.row("documents", "recall@10", f"{CLIENTS} clients, /s", "cost", "one client, /s", "p50 of one, ms")
for run in runs:
    run["search_cost_ratio"] = round(runs[0]["searches_per_s"] / run["searches_per_s"], 3)
    rates = [f"{run['searches_per_s']:,}", f"{run['search_cost_ratio']:.2f}", f"{run['searches_per_s_one']:,}"]
    report.row(f"{run['documents']:,}", f"{run['recall']:.3f}", *rates, f"{run['latency_ms_one']['p50']:.2f}")
report.write(out, {"sizes": sizes, "noise": vector_set.NOISE, "seconds_each": seconds, "runs": runs})
