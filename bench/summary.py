"""Says at the end of a run what is asked for, what was measured, what the run before found, and how close the machine's limits are.

Usage: summary.py RUN_DIR COMMIT      RUN_DIR holds a JSON file of each part and is one of many in the same folder; writes run.json there
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import report

MILLION = 1_000_000

folder, commit = Path(sys.argv[1]), sys.argv[2]
parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.name != "run.json"}


@dataclass
class Line:
    """What issue 6 asks for, and what was measured of it."""

    what: str
    sign: str
    target: float
    unit: str = ""
    measured: float | None = None
    # What the figure is of, when it is not of what is asked for.
    instead: str = ""

    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        if self.instead:
            return self.instead
        is_met = self.measured >= self.target if self.sign == ">=" else self.measured <= self.target
        return "met" if is_met else "missed"


def embedding_lines() -> list[Line]:
    speed, latency = Line("embedding, by ONNX Runtime f32", ">=", 2.5), Line("12 tokens, by ONNX Runtime f32", "<=", 0.5)
    if part := parts.get("embedding"):
        default = next(one for one in part["encoders"] if one["is_default"])
        speed.measured, latency.measured = default["tokens_per_s_ratio"], default["query_ratio"]
    return [speed, latency]


def vector_lines() -> list[Line]:
    ratio, recall = Line("HTTP search, by faiss", ">=", 1.0), Line("  recall@10 there", ">=", 0.95)
    at_its_recall = Line("  by faiss at the same recall", ">=", 1.0)
    filtered = Line("filters, least recall@10", ">=", 0.95)
    filtered_rate = Line("  least throughput by unfiltered", ">=", 0.333)
    if part := parts.get("vectors"):
        level, filters = part["levels"][0], part["filters"]
        ratio.measured, recall.measured = level["ratio"], level["recall"]
        at_its_recall.measured = level.get("ratio_at_its_recall")
        filtered.measured = min(one["recall"] for one in filters)
        filtered_rate.measured = round(min(one["searches_per_s"] for one in filters) / level["searches_per_s"], 3)
        if part["vectors"] != part["real_vectors"]:
            ratio.instead = recall.instead = at_its_recall.instead = f"of {part['vectors']:,}"
            filtered.instead = filtered_rate.instead = ratio.instead
    return [ratio, recall, at_its_recall, filtered, filtered_rate]


def million_lines() -> list[Line]:
    ratio, recall = Line("HTTP search in a million, by faiss", ">=", 1.5), Line("  recall@10 in a million", ">=", 0.95)
    load = Line("  loaded and indexed, by faiss' build", "<=", 1.0)
    if part := parts.get("vectors-million"):
        level = part["levels"][0]
        ratio.measured, recall.measured = level["ratio"], level["recall"]
        load.measured = round(part["filled"]["indexed_s"] / part["libraries"][0]["built_s"], 3)
    return [ratio, recall, load]


def text_lines() -> list[Line]:
    memory, recall = Line("a million with text, resident", "<=", 700, " MB"), Line("  recall@10 with text", ">=", 0.95)
    balance = Line("  p95 of 100 by p50 of 1, by core", "<=", 5)
    if part := parts.get("texts"):
        sizes = part["memory"]
        memory.measured = round(max(sizes[stage]["resident"] for stage in ("at rest", "after searches")) / 1e6)
        recall.measured = part["recall"]
        balance.measured = max(part["imbalance"].values())
        if part["texts"] != MILLION:
            memory.instead = recall.instead = balance.instead = f"of {part['texts']:,}"
    return [memory, recall, balance]


def import_lines() -> list[Line]:
    rate = Line("import with vectors, documents/s", ">=", 20_000)
    # A small import is acknowledged before anything of it is indexed, a large one is indexed while it comes: what a document costs is the processor time until
    # all is done. The others are shown beside it.
    cost = Line("  cost in a million by ten thousand", "<=", 1.5)
    indexed, acknowledged = Line("    by time until indexed", "<=", 1.5), Line("    by time until acknowledged", "<=", 1.5)
    if part := parts.get("scaling"):
        first, last = part["runs"][0], part["runs"][-1]
        rate.measured = min(run["imported_per_s"] for run in part["runs"])
        cost.measured = round(last["processor_us_per_document"] / first["processor_us_per_document"], 3)
        indexed.measured = round(last["indexed_s"] / last["documents"] * first["documents"] / first["indexed_s"], 3)
        acknowledged.measured = last["import_cost_ratio"]
        if (part["sizes"][0], part["sizes"][-1]) != (10_000, MILLION):
            cost.instead = indexed.instead = acknowledged.instead = f"of {part['sizes'][-1]:,} by {part['sizes'][0]:,}"
    return [rate, cost, indexed, acknowledged]


def start_lines() -> list[Line]:
    memory, ready = Line("idle node, resident", "<=", 80, " MB"), Line("ready after", "<", 0.4, " s")
    if part := parts.get("start"):
        memory.measured = round(max(part[kind]["resident"] for kind in ("first", "again")) / 1e6, 1)
        ready.measured = max(part[kind]["ready_s"] for kind in ("first", "again"))
    return [memory, ready]


@dataclass
class Use:
    """How much of what the machine can do is used, a second."""

    what: str
    used: float
    limit: float


def uses() -> list[Use]:
    """Where it can be counted."""
    limits, found = parts.get("limits"), []
    if limits is None:
        return found
    if part := parts.get("embedding"):
        rates = {(one["precision"], one["instructions"]): one["operations_per_s"] for one in limits["arithmetic"]}
        for one in part["encoders"]:
            if limit := rates.get((one["precision"], one["instructions"])):
                found.append(Use(f"products of {one['name']}", one["tokens_per_s"] * part["operations_per_token"], limit))
    for name in ("vectors", "vectors-million"):
        if part := parts.get(name):
            exact = next(level for level in part["levels"] if level["level"] == "exact")
            read = exact["searches_per_s"] * part["vectors"] * part["row_bytes"]
            found.append(Use(f"reading {part['vectors']:,} rows, exact", read, limits["read_bytes_per_s"]))
    if part := parts.get("scaling"):
        for run in part["runs"]:
            written = run["imported_per_s"] * run["written_bytes_per_document_imported"]
            found.append(Use(f"writing {run['documents']:,} documents", written, limits["written_bytes_per_s"]))
    return found


def run_before() -> dict[str, dict]:
    """Of each line, what the last run on such a machine that measured it found, of the same thing."""
    found = {}
    for path in sorted(folder.parent.glob("*/run.json")):
        earlier = json.loads(path.read_text())
        if path.parent.name < folder.name and earlier["machine"] == report.machine():
            lines = [line for line in earlier["asked_for"] if line["measured"] is not None]
            found |= {line["what"] + line["instead"]: {**line, "commit": earlier["commit"]} for line in lines}
    return found


lines = [*embedding_lines(), *vector_lines(), *million_lines(), *text_lines(), *import_lines(), *start_lines()]
before = run_before()
report.row("asked for", "target", "measured", "", "before")
for line in lines:
    measured = "" if line.measured is None else f"{line.measured:,}{line.unit}"
    earlier = before.get(line.what + line.instead)
    said_before = f"{earlier['measured']:,}{line.unit}" if earlier else ""
    report.row(line.what, f"{line.sign} {line.target:,}{line.unit}", measured, line.verdict(), said_before)
used = uses()
if used:
    report.row("part of what the machine can do", "used, G/s", "at most, G/s", "part")
for use in used:
    report.row(use.what, f"{use.used / 1e9:,.2f}", f"{use.limit / 1e9:,.2f}", f"{use.used / use.limit:.0%}")
entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit, "machine": report.machine()}
entry |= {"asked_for": [asdict(line) | {"verdict": line.verdict()} for line in lines], "uses": [asdict(use) for use in used], "parts": parts}
report.write(str(folder / "run.json"), entry)
report.note(f"all figures: {folder / 'run.json'}")
