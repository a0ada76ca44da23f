"""Prints what `machine_limits` measured, and measures how long a write takes to be durable.

Usage: limits.py WORK_DIR OUT.json      WORK_DIR holds limits.json and is on the disk that is measured
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import report

SYNCS, SYNC_BYTES = 300, 4096
WRITTEN_BYTES, WRITTEN_AT_ONCE = 1 << 30, 4 << 20

work, out = Path(sys.argv[1]), sys.argv[2]


def sync_ms() -> list[float]:
    """Milliseconds that each of many appended blocks took to be on the disk."""
    taken = []
    block = os.urandom(SYNC_BYTES)
    with (work / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            begun = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - begun) * 1e3)
    return sorted(taken)


def written_bytes_per_s() -> float:
    """In one file, in order, and durable at the end."""
    block = os.urandom(WRITTEN_AT_ONCE)
    begun = time.perf_counter()
    with (work / "written").open("wb", buffering=0) as file:
        for _ in range(WRITTEN_BYTES // WRITTEN_AT_ONCE):
            file.write(block)
        os.fdatasync(file.fileno())
    return WRITTEN_BYTES / (time.perf_counter() - begun)


limits = json.loads((work / "limits.json").read_text())
syncs = sync_ms()
limits |= {
    "sync_ms": {"p50": round(statistics.median(syncs), 3), "p99": round(syncs[SYNCS * 99 // 100], 3)},
    "written_bytes_per_s": round(written_bytes_per_s()),
}
report.row(report.machine(), "one core", "all cores")
for products in limits["arithmetic"]:
    rates = [f"{products[name] / 1e9:,.0f} G/s" for name in ("operations_per_s_one_core", "operations_per_s")]
    report.row(f"products of {products['precision']}, {products['instructions']}", *rates)
reads = [f"{limits[name] / 1e9:.1f} GB/s" for name in ("read_bytes_per_s_one_core", "read_bytes_per_s")]
report.row("reading memory", *reads)
report.row(f"{SYNC_BYTES} bytes made durable, ms", f"{limits['sync_ms']['p50']:.2f}", f"p99 {limits['sync_ms']['p99']:.2f}")
report.row("writing a GiB until it is durable", "", f"{limits['written_bytes_per_s'] / 1e9:.2f} GB/s")
report.write(out, limits)
