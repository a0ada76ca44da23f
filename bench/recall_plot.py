"""Draws recall against throughput, as SVG."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

RECALL_MIN = 0.85


def write(path: Path, libraries: list[dict], levels: list[dict], title: str) -> None:
    """Libraries have a curve, of all cores; ragged a point for each level of `recall`, of its HTTP API with 16 clients."""
    figure = Figure(figsize=(7.5, 5))
    axes = figure.subplots()
    for one in libraries:
        points = [point for point in one["curve"] if point["recall"] >= RECALL_MIN]
        recalls, rates = [point["recall"] for point in points], [point["searches_per_s"] for point in points]
        axes.plot(recalls, rates, marker="o", markersize=4, label=f"{one['name']}, bare library")
    recalls, rates = [level["recall"] for level in levels], [level["searches_per_s"] for level in levels]
    axes.plot(recalls, rates, marker="s", markersize=7, color="black", label="ragged, over HTTP")
    for level in levels:
        place = (level["recall"], level["searches_per_s"])
        axes.annotate(f"recall {level['level']}", place, xytext=(-8, -4), textcoords="offset points", ha="right", va="top")
    axes.set_yscale("log")
    as_number = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(as_number)
    axes.yaxis.set_minor_formatter(as_number)
    axes.set_xlim(RECALL_MIN, 1.002)
    axes.set_xlabel("recall@10")
    axes.set_ylabel("searches a second")
    axes.set_title(title, fontsize=10)
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
