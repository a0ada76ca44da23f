"""Measures vector search: libraries in this process, and the node at RAGGED_URL through its HTTP API.

Usage: vectors.py DATA_DIR WORK_DIR RESULTS.jsonl COMMIT      SECONDS_EACH, CLIENTS and PEERS as in bench/vectors
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy

DIMENSION = 384
DEPTH = 10
RECALL = 0.95
EFFORTS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
COLLECTION = "vectors"

data, work, results, commit = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
seconds_each = float(os.environ.get("SECONDS_EACH", "10"))
clients = int(os.environ.get("CLIENTS", "16"))
peers = os.environ.get("PEERS", "faiss hnswlib usearch").split()
cores = os.cpu_count() or 1

documents = numpy.fromfile(data / "documents.f32", dtype="<f4").reshape(-1, DIMENSION)
questions = numpy.fromfile(data / "questions.f32", dtype="<f4").reshape(-1, DIMENSION)
similarity = questions @ documents.T
# The least of the ten largest: of documents that are equally near, any will do.
worst = -numpy.partition(-similarity, DEPTH - 1, axis=1)[:, DEPTH - 1]


def recall_of(found: numpy.ndarray) -> float:
    rows = numpy.arange(len(questions))[:, None]
    is_near = (similarity[rows, numpy.maximum(found, 0)] >= worst[:, None] - 1e-6) & (found >= 0)
    return float(is_near.sum()) / (DEPTH * len(questions))


def throughput(search: Callable[[numpy.ndarray], object]) -> float:
    """Searches a second, in batches of all questions."""
    search(questions)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds_each / 2:
        search(questions)
        done += len(questions)
    return done / (time.perf_counter() - begun)


def faiss_index() -> tuple[Callable, Callable]:
    import faiss

    faiss.omp_set_num_threads(cores)
    index = faiss.IndexHNSWFlat(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT)
    index.add(documents)

    def set_effort(effort: int, threads: int) -> None:
        index.hnsw.efSearch = effort
        faiss.omp_set_num_threads(threads)

    return set_effort, lambda some: index.search(some, DEPTH)[1]


def hnswlib_index() -> tuple[Callable, Callable]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=DIMENSION)
    index.init_index(max_elements=len(documents), M=16, ef_construction=200)
    index.add_items(documents, num_threads=cores)

    def set_effort(effort: int, threads: int) -> None:
        index.set_ef(effort)
        index.set_num_threads(threads)

    return set_effort, lambda some: index.knn_query(some, k=DEPTH)[0].astype(numpy.int64)


def usearch_index() -> tuple[Callable, Callable]:
    from usearch.index import Index

    index = Index(ndim=DIMENSION, metric="ip", dtype="f32", connectivity=16)
    index.add(numpy.arange(len(documents)), documents, threads=cores)
    used = {"threads": cores}

    def set_effort(effort: int, threads: int) -> None:
        index.expansion_search = effort
        used["threads"] = threads

    def search(some: numpy.ndarray) -> numpy.ndarray:
        return index.search(some, DEPTH, threads=used["threads"]).keys.astype(numpy.int64)

    return set_effort, search


def measure_library(name: str, build: Callable[[], tuple[Callable, Callable]]) -> dict:
    begun = time.perf_counter()
    set_effort, search = build()
    built = time.perf_counter() - begun
    for effort in EFFORTS:
        set_effort(effort, cores)
        recall = recall_of(search(questions))
        if recall >= RECALL:
            break
    all_cores = throughput(search)
    set_effort(effort, 1)
    return {
        "name": name,
        "effort": effort,
        "recall": round(recall, 4),
        "searches_per_s": round(all_cores),
        "searches_per_s_one_thread": round(throughput(search)),
        "load_s": round(built, 2),
    }


class Node:
    """The node at RAGGED_URL."""

    def __init__(self) -> None:
        self.url = os.environ["RAGGED_URL"] + "/api/v1/collections"
        self.headers = {"authorization": f"Bearer {os.environ['RAGGED_KEY']}", "content-type": "application/json"}

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), self.headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def load(self) -> float:
        """Imports all documents with their vectors, and waits until they are indexed; the seconds that took."""
        lines = work / "documents.ndjson"
        with lines.open("w") as file:
            for number, vector in enumerate(documents):
                values = ",".join(f"{value:.7g}" for value in vector)
                file.write(f'{{"id":"{number}","text":"{number}","vector":[{values}]}}\n')
        self.post("", {"name": COLLECTION, "embedding": {"dimension": DIMENSION}})
        begun = time.perf_counter()
        subprocess.run(["ragged", "import", str(lines), "--collection", COLLECTION], check=True, stdout=subprocess.DEVNULL)
        imported = time.perf_counter() - begun
        print(f"    imported in {imported:.1f} s, {len(documents) / imported:,.0f} documents a second", flush=True)
        probe = {"vector": questions[0].tolist(), "limit": 1, "explain": True}
        while any("not indexed yet" in step and " 0 of them" not in step for step in self.steps(probe)):
            time.sleep(0.2)
        lines.unlink()
        return time.perf_counter() - begun

    def steps(self, search: dict) -> list[str]:
        plan = self.post(f"/{COLLECTION}/search", search)["plan"]
        return [step for shard in plan for step in shard["steps"]]

    def found(self, recall: object) -> numpy.ndarray:
        found = numpy.full((len(questions), DEPTH), -1)
        for first in range(0, len(questions), 100):
            some = questions[first : first + 100]
            searches = [{"vector": one.tolist(), "limit": DEPTH, "recall": recall} for one in some]
            for row, result in enumerate(self.post(f"/{COLLECTION}/search/batch", {"searches": searches})["results"]):
                for rank, hit in enumerate(result["hits"]):
                    found[first + row, rank] = int(hit["document_id"])
        return found

    def throughput(self, recall: object, clients: int) -> dict:
        vectors = work / "questions.ndjson"
        vectors.write_text("\n".join(json.dumps([round(float(value), 6) for value in one]) for one in questions))
        command = ["ragged", "bench", "--collection", COLLECTION, "--vectors", str(vectors), "--mode", "dense", "--json"]
        command += ["--clients", str(clients), "--rate", "max", "--seconds", str(seconds_each), "--recall", str(recall)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(*cells: object) -> None:
    print("    " + f"{cells[0]:<34}" + "".join(f"{cell:>16}" for cell in cells[1:]), flush=True)


builders = {"faiss": faiss_index, "hnswlib": hnswlib_index, "usearch": usearch_index}
print(f"    {len(documents):,} vectors of {DIMENSION} values, {len(questions):,} questions, {cores} cores", flush=True)
measured = []
for peer in peers:
    measured.append(measure_library(f"{peer}, HNSW 16", builders[peer]))
node = Node()
load_s = node.load()
for recall in (0.95, 0.99, "exact"):
    found = recall_of(node.found(recall))
    many, one = node.throughput(recall, clients), node.throughput(recall, 1)
    measured.append(
        {
            "name": f"ragged over HTTP, recall {recall}",
            "recall": round(found, 4),
            "searches_per_s": round(many["throughput_per_s"]),
            "searches_per_s_one_thread": round(one["throughput_per_s"]),
            "load_s": round(load_s, 2),
            "latency": {"clients": clients, "many": many, "one": one},
        }
    )

reference = measured[0]["searches_per_s"]
row("", "recall@10", "searches/s", "ratio", "one thread", "load, s")
for run in measured:
    ratio = run["searches_per_s"] / reference
    row(run["name"], f"{run['recall']:.3f}", f"{run['searches_per_s']:,}", f"{ratio:.2f}", f"{run['searches_per_s_one_thread']:,}", f"{run['load_s']:.1f}")
with results.open("a") as file:
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "cores": cores, "vectors": len(documents), "measured": measured}
    file.write(json.dumps(entry) + "\n")
