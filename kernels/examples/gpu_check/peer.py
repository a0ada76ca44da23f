"""sentence-transformers on the GPU, in halves: tokens a second of encode(), which takes texts, and of the model's forward pass alone, whose input is on
the GPU already. Prints JSON. The only argument is the model's folder."""

import json
import statistics
import sys
import time

import sentence_transformers
import torch

model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cuda")
model.half()
words = [word for word in model.tokenizer.get_vocab() if word.isalpha() and word.islower() and len(word) > 3]
words.sort()


def text(number, tokens):
    return " ".join(words[(number * 7919 + place * 104729) % len(words)] for place in range(tokens - 2))


def seconds(work, repeats=7):
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


figures = []
with torch.inference_mode():
    for tokens in (16, 64, 256):
        for batch in (1, 32, 512, 2048):
            texts = [text(number, tokens) for number in range(batch)]
            prepare = getattr(model, "preprocess", None) or model.tokenize
            features = {name: value.to("cuda") for name, value in prepare(texts).items() if hasattr(value, "to")}
            there = int(features["attention_mask"].sum())
            encode = seconds(lambda: model.encode(texts, batch_size=min(batch, 512), convert_to_numpy=True, show_progress_bar=False))
            forward = seconds(lambda: model.forward(dict(features)))
            figures.append(
                {
                    "tokens": tokens,
                    "batch": batch,
                    "tokens_there": there,
                    "encode_tokens_per_second": there / encode,
                    "forward_tokens_per_second": there / forward,
                }
            )
attention = str(getattr(model[0].auto_model.config, "_attn_implementation", "unknown"))
print(json.dumps({"version": sentence_transformers.__version__, "attention": attention, "figures": figures}))
