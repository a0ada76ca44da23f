"""How a part of `make bench` says what it measured: rows of a table for people, and a file of JSON."""

import json
import os
from pathlib import Path

FIRST_WIDTH, WIDTH = 38, 17


def row(*cells: object) -> None:
    print("    " + f"{cells[0]:<{FIRST_WIDTH}}" + "".join(f" {cell:>{WIDTH}}" for cell in cells[1:]), flush=True)


def note(text: str) -> None:
    print(f"    {text}", flush=True)


def throughput_and_latency(load: dict) -> list[str]:
    """Cells for what `ragged bench` measured: searches a second, p50, p95 and p99 in milliseconds."""
    latency = load["latency_ms"]
    return [f"{load['throughput_per_s']:,.0f}", *(f"{latency[name]:.2f}" for name in ("p50", "p95", "p99"))]


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {os.cpu_count()} cores"


def write(out: str, figures: dict) -> None:
    Path(out).write_text(json.dumps(figures, indent=1) + "\n")
