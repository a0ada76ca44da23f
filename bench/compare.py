"""Prints what several encoders reached in the same run beside the first of them, and appends it to a file of results.

Usage: compare.py RESULTS.jsonl COMMIT < RUNS      RUNS has a line of JSON for each encoder and round
"""

import json
import statistics
import sys
import time
from pathlib import Path

results, commit = Path(sys.argv[1]), sys.argv[2]
runs: dict[str, list[dict]] = {}
for line in sys.stdin:
    run = json.loads(line)
    runs.setdefault(f"{run.get('name', 'ragged')}, {run['precision']}", []).append(run)


def median(encoder: str, figure: str) -> float:
    return statistics.median(run[figure] for run in runs[encoder])


reference = next(iter(runs))
summary = {
    encoder: {
        "tokens_per_s": median(encoder, "tokens_per_s"),
        "tokens_per_s_ratio": round(median(encoder, "tokens_per_s") / median(reference, "tokens_per_s"), 3),
        "query_12_tokens_ms": median(encoder, "query_12_tokens_ms"),
        "query_ratio": round(median(encoder, "query_12_tokens_ms") / median(reference, "query_12_tokens_ms"), 3),
    }
    for encoder in runs
}
last = json.loads(results.read_text().splitlines()[-1]) if results.exists() else {}
before = last.get("encoders", {})


def row(*cells: object) -> None:
    print("    " + f"{cells[0]:<26}" + "".join(f"{cell:>20}" for cell in cells[1:]))


row("encoder", "tokens/s", "ratio", "12 tokens, ms", "ratio")
for encoder, figures in summary.items():
    row(
        encoder,
        f"{figures['tokens_per_s']:,.0f}",
        f"{figures['tokens_per_s_ratio']:.2f}",
        f"{figures['query_12_tokens_ms']:.2f}",
        f"{figures['query_ratio']:.2f}",
    )
    if encoder in before:
        row("  last time", "", f"{before[encoder]['tokens_per_s_ratio']:.2f}", "", f"{before[encoder]['query_ratio']:.2f}")
with results.open("a") as file:
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "encoders": summary, "runs": runs}
    file.write(json.dumps(entry) + "\n")
