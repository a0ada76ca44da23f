"""Measures vector search: libraries in this process, and the node at RAGGED_URL through its HTTP API.

Usage: vectors.py DATA_DIR WORK_DIR RESULTS.jsonl COMMIT      the environment as in bench/vectors
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
import orjson

DIMENSION = 384
DEPTH = 10
RECALL = 0.95
EFFORTS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
COLLECTION = "vectors"
# Length of the noise that a copy differs from its vector by, which has length 1: a cosine of about 0.96.
NOISE = 0.3
SELECTIVITIES = [0.001, 0.01, 0.1, 0.5]
SCORED_AT_ONCE = 50_000

data, work, results, commit = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
seconds_each = float(os.environ.get("SECONDS_EACH", "10"))
clients = int(os.environ.get("CLIENTS", "16"))
peers = os.environ.get("PEERS", "faiss hnswlib usearch").split()
cores = os.cpu_count() or 1


def vectors_with_copies() -> numpy.ndarray:
    """The real vectors, and noisy copies of them when VECTORS asks for more."""
    real = numpy.fromfile(data / "documents.f32", dtype="<f4").reshape(-1, DIMENSION)
    count = int(os.environ.get("VECTORS") or len(real))
    vectors = numpy.empty((count, DIMENSION), dtype="<f4")
    chance = numpy.random.default_rng(7)
    for first in range(0, count, len(real)):
        some = vectors[first : first + len(real)]
        some[:] = real[: len(some)]
        if first > 0:
            some += chance.standard_normal(some.shape, dtype="<f4") * numpy.float32(NOISE / DIMENSION**0.5)
            some /= numpy.linalg.norm(some, axis=1, keepdims=True)
    return vectors


documents = vectors_with_copies()
questions = numpy.fromfile(data / "questions.f32", dtype="<f4").reshape(-1, DIMENSION)
# A number of each document's that has nothing to do with its vector, from 0 up to 1: for filters.
draws = numpy.random.default_rng(8).permutation(len(documents)) / len(documents)


class Truth:
    """How near the ten nearest documents of each question are, of those whose draw is below a share."""

    def __init__(self, share: float) -> None:
        eligible = numpy.flatnonzero(draws < share)
        best = numpy.full((len(questions), DEPTH), -numpy.inf, dtype="<f4")
        for first in range(0, len(eligible), SCORED_AT_ONCE):
            scores = questions @ documents[eligible[first : first + SCORED_AT_ONCE]].T
            best = -numpy.partition(-numpy.hstack([best, scores]), DEPTH - 1, axis=1)[:, :DEPTH]
        self.share = share
        self.wanted = min(DEPTH, len(eligible))
        self.worst = -numpy.sort(-best, axis=1)[:, self.wanted - 1]

    def recall(self, found: numpy.ndarray) -> float:
        """Of documents that are equally near, any will do."""
        rows = numpy.maximum(found, 0)
        scores = numpy.einsum("qd,qkd->qk", questions, documents[rows])
        is_near = (scores >= self.worst[:, None] - 1e-6) & (found >= 0) & (draws[rows] < self.share)
        return float(is_near.sum()) / (self.wanted * len(questions))


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


def measure_library(name: str, build: Callable[[], tuple[Callable, Callable]], truth: Truth) -> dict:
    begun = time.perf_counter()
    set_effort, search = build()
    built = time.perf_counter() - begun
    for effort in EFFORTS:
        set_effort(effort, cores)
        recall = truth.recall(search(questions))
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
        self.url = os.environ["RAGGED_URL"]
        self.headers = {"authorization": f"Bearer {os.environ['RAGGED_KEY']}", "content-type": "application/json"}

    def call(self, path: str, body: dict | None = None) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, content, self.headers)) as answer:
            return answer.read()

    def post(self, path: str, body: dict) -> dict:
        return json.loads(self.call("/api/v1/collections" + path, body))

    def resident_bytes(self) -> int:
        lines = self.call("/metrics").decode().splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith("process_resident_memory_bytes "))

    def load(self) -> dict:
        """Imports all documents with their vectors, and waits until they are indexed; the seconds that took."""
        lines = work / "documents.ndjson"
        with lines.open("wb") as file:
            for number, vector in enumerate(documents):
                document = {"id": str(number), "text": str(number), "metadata": {"draw": float(draws[number])}, "vector": vector}
                file.write(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
        self.post("", {"name": COLLECTION, "embedding": {"dimension": DIMENSION}})
        begun = time.perf_counter()
        subprocess.run(["ragged", "import", str(lines), "--collection", COLLECTION], check=True, stdout=subprocess.DEVNULL)
        imported = time.perf_counter() - begun
        rate = len(documents) / imported
        print(f"    imported in {imported:.1f} s, {rate:,.0f} documents a second, {self.resident_bytes() >> 20} MiB resident", flush=True)
        probe = {"vector": questions[0].tolist(), "limit": 1, "explain": True}
        while any("not indexed yet" in step and " 0 of them" not in step for step in self.steps(probe)):
            time.sleep(0.2)
        loaded = time.perf_counter() - begun
        lines.unlink()
        return {"load_s": round(loaded, 2), "imported_per_s": round(rate)}

    def steps(self, search: dict) -> list[str]:
        plan = self.post(f"/{COLLECTION}/search", search)["plan"]
        return [step for shard in plan for step in shard["steps"]]

    def found(self, recall: object, share: float | None) -> numpy.ndarray:
        found = numpy.full((len(questions), DEPTH), -1)
        for first in range(0, len(questions), 100):
            some = questions[first : first + 100]
            searches = [{"vector": one.tolist(), "limit": DEPTH, "recall": recall, "filter": self.filter(share)} for one in some]
            for row, result in enumerate(self.post(f"/{COLLECTION}/search/batch", {"searches": searches})["results"]):
                for rank, hit in enumerate(result["hits"]):
                    found[first + row, rank] = int(hit["document_id"])
        return found

    def filter(self, share: float | None) -> dict:
        return {} if share is None else {"must": [{"field": "draw", "lt": share}]}

    def throughput(self, recall: object, clients: int, share: float | None) -> dict:
        vectors = work / "questions.ndjson"
        vectors.write_text("\n".join(json.dumps([round(float(value), 6) for value in one]) for one in questions))
        command = ["ragged", "bench", "--collection", COLLECTION, "--vectors", str(vectors), "--mode", "dense", "--json"]
        command += ["--clients", str(clients), "--rate", "max", "--seconds", str(seconds_each), "--recall", str(recall)]
        if share is not None:
            command += ["--filter", json.dumps(self.filter(share))]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def measure(self, name: str, recall: object, truth: Truth, share: float | None = None) -> dict:
        found = truth.recall(self.found(recall, share))
        many, one = self.throughput(recall, clients, share), self.throughput(recall, 1, share)
        return {
            "name": name,
            "recall": round(found, 4),
            "searches_per_s": round(many["throughput_per_s"]),
            "searches_per_s_one_thread": round(one["throughput_per_s"]),
            "latency": {"clients": clients, "many": many, "one": one},
        }


def row(*cells: object) -> None:
    print("    " + f"{cells[0]:<34}" + "".join(f"{cell:>16}" for cell in cells[1:]), flush=True)


builders = {"faiss": faiss_index, "hnswlib": hnswlib_index, "usearch": usearch_index}
print(f"    {len(documents):,} vectors of {DIMENSION} values, {len(questions):,} questions, {cores} cores", flush=True)
everything = Truth(1.0)
measured = []
for peer in peers:
    measured.append(measure_library(f"{peer}, HNSW 16", builders[peer], everything))
node = Node()
loaded = node.load()
for recall in (0.95, 0.99, "exact"):
    measured.append({**node.measure(f"ragged over HTTP, recall {recall}", recall, everything), **loaded})
for share in SELECTIVITIES:
    measured.append(node.measure(f"ragged over HTTP, filter {share:.1%}", RECALL, Truth(share), share))
resident_bytes = node.resident_bytes()

reference = measured[0]["searches_per_s"]
row("", "recall@10", "searches/s", "ratio", "one thread", "load, s")
for run in measured:
    ratio, load_s = run["searches_per_s"] / reference, run.get("load_s", "")
    row(run["name"], f"{run['recall']:.3f}", f"{run['searches_per_s']:,}", f"{ratio:.2f}", f"{run['searches_per_s_one_thread']:,}", load_s)
print(f"    the node has {resident_bytes >> 20} MiB resident")
with results.open("a") as file:
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "cores": cores, "vectors": len(documents)}
    file.write(json.dumps({**entry, "resident_bytes": resident_bytes, "measured": measured}) + "\n")
