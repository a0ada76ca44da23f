"""Embedding speed of ONNX Runtime, the peer of ragged's encoder: texts as `shared/peers/ort_speed.py` measures them, and one query of 12 tokens.

Usage: onnxruntime_speed.py MODEL.onnx TOKENIZER.json TEXTS THREADS [int8]      with `int8`, the model is quantized first (dynamic, per channel)

Batches of 16, sorted by length, at most 256 tokens; the best of three rounds after a warm-up. The query is alone and on one thread, the best of
100. Prints one line of JSON.
"""

import gzip
import json
import os
import sys
import time

import numpy
import onnxruntime
from tokenizers import Tokenizer

model, tokenizer_path, texts_path, threads = *sys.argv[1:4], int(sys.argv[4])
precision = "int8" if sys.argv[5:] == ["int8"] else "f32"
QUERY = "what does exercise do for the health of old mice"

if precision == "int8":
    quantized = model.removesuffix(".onnx") + ".int8.onnx"
    if not os.path.exists(quantized):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(model, quantized + ".new", weight_type=QuantType.QInt8, per_channel=True)
        os.replace(quantized + ".new", quantized)
    model = quantized

tokenizer = Tokenizer.from_file(tokenizer_path)
tokenizer.no_padding()
tokenizer.enable_truncation(256)


def session_of(threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options)


def embed(session: onnxruntime.InferenceSession, batch: list[list[int]]) -> None:
    width = max(map(len, batch))
    ids = numpy.zeros((len(batch), width), numpy.int64)
    mask = numpy.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    session.run(None, {"input_ids": ids, "attention_mask": mask})


def best_of(rounds: int, batches: list[list[list[int]]], session: onnxruntime.InferenceSession) -> float:
    best = float("inf")
    for number in range(rounds + 1):
        start = time.perf_counter()
        for batch in batches:
            embed(session, batch)
        if number > 0:
            best = min(best, time.perf_counter() - start)
    return best


def text_of(line: str) -> str:
    document = json.loads(line)
    return (document.get("title") or "") + " " + document["text"]


with gzip.open(texts_path, "rt") as file:
    texts = [text_of(line) for line, _ in zip(file, range(512))]
encoded = sorted((encoding.ids for encoding in tokenizer.encode_batch(texts)), key=len)
tokens = sum(map(len, encoded))
seconds = best_of(3, [encoded[at : at + 16] for at in range(0, len(encoded), 16)], session_of(threads))
query = tokenizer.encode(QUERY).ids
assert len(query) == 12
query_seconds = best_of(100, [[query]], session_of(1))
report = {
    "name": f"onnxruntime {onnxruntime.__version__}",
    "precision": precision,
    "threads": threads,
    "tokens": tokens,
    "tokens_per_s": round(tokens / seconds),
    "query_12_tokens_ms": round(query_seconds * 1e3, 3),
}
print(json.dumps(report))
