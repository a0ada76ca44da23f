"""Measures vector search: libraries in this process, then the node through its HTTP API.

Usage: vectors.py VECTORS_DIR WORK_DIR OUT.json      the environment as in bench/vectors
"""

import itertools
import math
import os
import sys
from pathlib import Path

import numpy

import library
import ndjson
import recall_plot
import report
import vector_set
from node import Collection, Node
from vector_set import DEPTH, DIMENSION, Truth

RECALL = 0.95
LEVELS = [0.95, 0.99, "exact"]
SELECTIVITIES = [0.001, 0.01, 0.1, 0.5]
CLIENTS = 16
# How evenly the node serves many clients: at one, at some and at many.
CLIENT_NUMBERS = [1, 16, 100]

folder, work, out = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
seconds = float(os.environ.get("SECONDS_EACH", "10"))
peers = os.environ.get("PEERS", "faiss hnswlib usearch").split()
cores = os.cpu_count() or 1


def filter_of(share: float | None) -> dict:
    return {} if share is None else {"filter": {"must": [{"field": "draw", "lt": share}]}}


class Measured:
    """The node with all documents."""

    def __init__(self, documents: numpy.ndarray, questions: numpy.ndarray, truth: Truth) -> None:
        self.node = Node()
        self.questions = questions
        self.collection = Collection(self.node, "vectors", DIMENSION)
        lines = work / "documents.ndjson"
        ndjson.write_documents(lines, documents)
        self.filled = self.collection.fill(lines, len(documents), questions[0].tolist())
        lines.unlink()
        self.vectors = work / "questions.ndjson"
        ndjson.write_vectors(self.vectors, questions)
        self.recall_at_first = truth.recall_of_ids(self.collection.found_at_first(self.searches(RECALL)))

    def searches(self, recall: object, share: float | None = None) -> list[dict]:
        return [{"vector": one.tolist(), "limit": DEPTH, "recall": recall, **filter_of(share)} for one in self.questions]

    def load(self, recall: object, clients: int, share: float | None = None) -> dict:
        options = {"vectors": self.vectors, "mode": "dense", "recall": recall, **filter_of(share)}
        return self.collection.load(clients, seconds, **options)

    def measure(self, name: str, recall: object, truth: Truth, share: float | None = None) -> dict:
        found = truth.recall_of_ids(self.collection.found(self.searches(recall, share)))
        many, one = self.load(recall, CLIENTS, share), self.load(recall, 1, share)
        return {
            "name": name,
            "recall": round(found, 4),
            "searches_per_s": round(many["throughput_per_s"]),
            "searches_per_s_one": round(one["throughput_per_s"]),
            "latency_ms": many["latency_ms"],
            "latency_ms_one": one["latency_ms"],
        }


def rate_at(recall: float, curve: list[dict]) -> float | None:
    """What a curve's throughput is at a recall, between its points by its logarithm; none where it does not reach."""
    for below, above in itertools.pairwise(curve):
        if below["recall"] <= recall <= above["recall"] and below["recall"] < above["recall"]:
            part = (recall - below["recall"]) / (above["recall"] - below["recall"])
            return math.exp((1 - part) * math.log(below["searches_per_s"]) + part * math.log(above["searches_per_s"]))
    return None


real = vector_set.read(folder / "documents.f32")
questions = vector_set.read(folder / "questions.f32")
documents = vector_set.with_copies(real, int(os.environ.get("VECTORS") or len(real)))
report.note(f"{len(documents):,} vectors of {DIMENSION} values, {len(questions):,} questions, {cores} cores")
truth = Truth(documents, questions)
reference, measure_reference_again = library.measure(peers[0], truth, RECALL, seconds)
libraries = [reference] + [library.measure(peer, truth, RECALL, seconds)[0] for peer in peers[1:]]
node = Measured(documents, questions, truth)
levels = [{**node.measure(f"ragged over HTTP, recall {level}", level, truth), "level": level} for level in LEVELS]
filters = []
for share in SELECTIVITIES:
    measured = node.measure(f"ragged over HTTP, filter {share:.1%}", RECALL, Truth(documents, questions, share), share)
    filters.append({**measured, "share": share})
by_clients = [node.load(RECALL, clients) for clients in CLIENT_NUMBERS]
memory = node.node.memory()
# Before the node and after it, so that a machine that became slower meanwhile counts for both.
reference["searches_per_s_before"] = reference["searches_per_s"]
reference["searches_per_s_after"] = round(measure_reference_again())
reference["searches_per_s"] = (reference["searches_per_s_before"] + reference["searches_per_s_after"]) // 2

report.row("", "recall@10", "searches/s", "ratio", "one alone", "built, s")
for run in [*libraries, *levels, *filters]:
    ratio = run["searches_per_s"] / reference["searches_per_s"]
    run["ratio"] = round(ratio, 3)
    rates = [f"{run['searches_per_s']:,}", f"{ratio:.2f}", f"{run['searches_per_s_one']:,}"]
    report.row(run["name"], f"{run['recall']:.3f}", *rates, run.get("built_s", ""))
for run in levels:
    if rate := rate_at(run["recall"], reference["curve"]):
        ratio = run["ratio_at_its_recall"] = round(run["searches_per_s"] / rate, 3)
        report.note(f"at a recall of {run['recall']:.3f} {reference['name']} makes about {rate:,.0f} searches/s: ratio {ratio:.2f}")
report.note(f"before the node had seen what is asked for, recall@10 was {node.recall_at_first:.3f}")
filled = node.filled
report.note(
    f"imported in {filled['imported_s']:.1f} s ({filled['imported_per_s']:,} documents/s), indexed after {filled['indexed_s']:.1f} s, at rest after"
    f" {filled['rest_s']:.1f} s; {report.megabytes(memory['resident'])} resident, {report.megabytes(memory['anonymous'])} of it anonymous"
)
report.row("recall 0.95 by clients", "searches/s", "p50, ms", "p95, ms", "p99, ms")
for run in by_clients:
    report.row(f"{run['clients']} clients", *report.throughput_and_latency(run))

plot = Path(out).with_suffix(".svg")
recall_plot.write(plot, libraries, levels, f"{len(documents):,} vectors of {DIMENSION} values, {cores} cores")
report.note(f"recall against throughput: {plot}")
report.write(
    out,
    {
        "vectors": len(documents),
        "real_vectors": len(real),
        "noise": vector_set.NOISE if len(documents) > len(real) else None,
        "row_bytes": 2 * DIMENSION,
        "questions": len(questions),
        "seconds_each": seconds,
        "clients": CLIENTS,
        "libraries": libraries,
        "filled": filled,
        "levels": levels,
        "filters": filters,
        "by_clients": by_clients,
        "memory": memory,
    },
)
