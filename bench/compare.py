"""Prints the rounds of two programs side by side with their ratio, and appends them to a file of results.

Usage: compare.py RESULTS.jsonl COMMIT ROUNDS PEER_JSON... OURS_JSON...
"""

import json
import statistics
import sys
import time
from pathlib import Path

results, commit, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
runs = [json.loads(text) for text in sys.argv[4:]]
peer, ours = runs[:rounds], runs[rounds:]
ratios = [b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(peer, ours, strict=True)]


def row(*cells: object) -> None:
    print("    " + f"{cells[0]:<10}" + "".join(f"{cell:>24}" for cell in cells[1:]))


row("round", f"{peer[0].get('runtime', 'peer')}, tokens/s", "ragged, tokens/s", "ratio")
for number, (a, b, ratio) in enumerate(zip(peer, ours, ratios, strict=True), 1):
    row(number, f"{a['tokens_per_s']:,.0f}", f"{b['tokens_per_s']:,.0f}", f"{ratio:.3f}")
median = {name: statistics.median(run["tokens_per_s"] for run in side) for name, side in (("peer", peer), ("ours", ours))}
row("median", f"{median['peer']:,.0f}", f"{median['ours']:,.0f}", f"{statistics.median(ratios):.3f}")

if results.exists():
    last = json.loads(results.read_text().splitlines()[-1])
    print(f"    last time: ratio {last['ratio']:.3f} ({last['time']}, commit {last['commit']})")
with results.open("a") as file:
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "ratio": round(statistics.median(ratios), 4)}
    file.write(json.dumps(entry | {"peer": peer, "ours": ours}) + "\n")
