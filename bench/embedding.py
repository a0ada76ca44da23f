"""Prints what several encoders reached in the same run beside the first of them.

Usage: embedding.py MODEL_DIR OUT.json < RUNS      RUNS has a line of JSON for each encoder and round
"""

import json
import statistics
import sys
from pathlib import Path

import report

model, out = Path(sys.argv[1]), sys.argv[2]
runs: dict[str, list[dict]] = {}
for line in sys.stdin:
    run = json.loads(line)
    instructions = f", {run['instructions']}" if "instructions" in run else ""
    runs.setdefault(f"{run.get('name', 'ragged')}, {run['precision']}{instructions}", []).append(run)


def operations_per_token() -> int:
    """Multiplications and additions of the products with weights; attention, a tenth of them at 256 tokens, is left out."""
    shape = json.loads((model / "config.json").read_text())
    projections, feed_forward = 4 * shape["hidden_size"] ** 2, 2 * shape["hidden_size"] * shape["intermediate_size"]
    return 2 * shape["num_hidden_layers"] * (projections + feed_forward)


def median(encoder: str, figure: str) -> float:
    return statistics.median(run[figure] for run in runs[encoder])


reference = next(iter(runs))
encoders = [
    {
        "name": encoder,
        "is_ragged": "name" not in runs[encoder][0],
        "is_default": runs[encoder][0].get("is_default", False),
        "precision": runs[encoder][0]["precision"],
        "instructions": runs[encoder][0].get("instructions"),
        "tokens_per_s": median(encoder, "tokens_per_s"),
        "tokens_per_s_ratio": round(median(encoder, "tokens_per_s") / median(reference, "tokens_per_s"), 3),
        "query_12_tokens_ms": median(encoder, "query_12_tokens_ms"),
        "query_ratio": round(median(encoder, "query_12_tokens_ms") / median(reference, "query_12_tokens_ms"), 3),
    }
    for encoder in runs
]
report.row("encoder", "tokens/s", "ratio", "12 tokens, ms", "ratio")
for one in encoders:
    report.row(
        one["name"],
        f"{one['tokens_per_s']:,.0f}",
        f"{one['tokens_per_s_ratio']:.2f}",
        f"{one['query_12_tokens_ms']:.2f}",
        f"{one['query_ratio']:.2f}",
    )
first = runs[reference][0]
figures = {"threads": first["threads"], "tokens": first["tokens"], "operations_per_token": operations_per_token()}
report.write(out, {**figures, "encoders": encoders, "runs": runs})
