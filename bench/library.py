"""Libraries that search vectors, in this process: what ragged is compared with. All are HNSW graphs with 16 neighbours."""

import os
import time
from collections.abc import Callable

import numpy

from vector_set import DEPTH, DIMENSION, Truth

EFFORTS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1536, 3072]
# Where a curve ends.
RECALL_MAX = 0.998
CORES = os.cpu_count() or 1

# Sets the effort of searches and their threads; searches.
Index = tuple[Callable[[int, int], None], Callable[[numpy.ndarray], numpy.ndarray]]


def faiss_index(documents: numpy.ndarray) -> Index:
    import faiss

    faiss.omp_set_num_threads(CORES)
    index = faiss.IndexHNSWFlat(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT)
    index.add(documents)

    def set_effort(effort: int, threads: int) -> None:
        index.hnsw.efSearch = effort
        faiss.omp_set_num_threads(threads)

    return set_effort, lambda questions: index.search(questions, DEPTH)[1]


def hnswlib_index(documents: numpy.ndarray) -> Index:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=DIMENSION)
    index.init_index(max_elements=len(documents), M=16, ef_construction=200)
    index.add_items(documents, num_threads=CORES)

    def set_effort(effort: int, threads: int) -> None:
        index.set_ef(effort)
        index.set_num_threads(threads)

    return set_effort, lambda questions: index.knn_query(questions, k=DEPTH)[0].astype(numpy.int64)


def usearch_index(documents: numpy.ndarray) -> Index:
    from usearch.index import Index as UsearchIndex

    index = UsearchIndex(ndim=DIMENSION, metric="ip", dtype="f32", connectivity=16)
    index.add(numpy.arange(len(documents)), documents, threads=CORES)
    used = {"threads": CORES}

    def set_effort(effort: int, threads: int) -> None:
        index.expansion_search = effort
        used["threads"] = threads

    return set_effort, lambda questions: index.search(questions, DEPTH, threads=used["threads"]).keys.astype(numpy.int64)


BUILDERS = {"faiss": faiss_index, "hnswlib": hnswlib_index, "usearch": usearch_index}


def searches_per_s(search: Callable[[numpy.ndarray], object], questions: numpy.ndarray, seconds: float) -> float:
    """In batches of all questions, after one that does not count."""
    search(questions)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        search(questions)
        done += len(questions)
    return done / (time.perf_counter() - begun)


def measure(peer: str, truth: Truth, recall: float, seconds: float) -> tuple[dict, Callable[[], float]]:
    """A library at the least of the efforts that reaches a recall, and the curve of all efforts. Also what says its throughput once more."""
    begun = time.perf_counter()
    set_effort, search = BUILDERS[peer](truth.documents)
    built_s = time.perf_counter() - begun
    curve = []
    for effort in EFFORTS:
        set_effort(effort, CORES)
        found = truth.recall(search(truth.questions))
        rate = searches_per_s(search, truth.questions, seconds / 5)
        curve.append({"effort": effort, "recall": round(found, 4), "searches_per_s": round(rate)})
        if found >= RECALL_MAX:
            break
    # A peer that never finds so much is held against at its most, which flatters it: its recall is in the table.
    chosen = next((point for point in curve if point["recall"] >= recall), max(curve, key=lambda point: point["recall"]))
    if chosen["recall"] < recall:
        print(f"    {peer} does not find {recall} of the nearest, whatever the effort: its most counts", flush=True)

    def rate_with(threads: int) -> float:
        set_effort(chosen["effort"], threads)
        return searches_per_s(search, truth.questions, seconds)

    figures = {
        "name": f"{peer}, HNSW 16",
        "effort": chosen["effort"],
        "recall": chosen["recall"],
        "searches_per_s": round(rate_with(CORES)),
        "searches_per_s_one": round(rate_with(1)),
        "built_s": round(built_s, 2),
        "curve": curve,
    }
    return figures, lambda: rate_with(CORES)
