"""Measures starts of a node: the time from exec until /readyz is green, and its memory once it is idle.

Usage: start.py WORK_DIR OUT.json      the environment as in bench/start
"""

import http.client
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import report
from node import status_bytes

ASKED_EVERY_S = 0.001
READY_S_MAX = 60
# What is done once after a start is done by then.
IDLE_S = 5

work, out = Path(sys.argv[1]), sys.argv[2]
starts = int(os.environ.get("STARTS", "5"))
host, _, port = os.environ["RAGGED_HTTP_LISTEN"].rpartition(":")


def is_ready() -> bool:
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (ConnectionError, http.client.HTTPException, TimeoutError):
        return False
    finally:
        connection.close()


def start(data: Path) -> dict:
    with (work / "node.log").open("ab") as log:
        begun = time.perf_counter()
        node = subprocess.Popen(["ragged", "serve"], env={**os.environ, "RAGGED_DATA_DIR": str(data)}, stdout=log, stderr=log)
    try:
        while not is_ready():
            if node.poll() is not None or time.perf_counter() - begun > READY_S_MAX:
                raise TimeoutError(f"the node did not become ready; its log: {(work / 'node.log').read_text()}")
            time.sleep(ASKED_EVERY_S)
        ready_s = time.perf_counter() - begun
        time.sleep(IDLE_S)
        return {"ready_s": round(ready_s, 4), **status_bytes(node.pid)}
    finally:
        node.terminate()
        node.wait()


def medians(runs: list[dict]) -> dict:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


first, again = [], []
for number in range(starts):
    data = work / f"data-{number}"
    first.append(start(data))
    again.append(start(data))
kinds = {"first start, of a new node": medians(first), "the next start": medians(again)}
report.row(f"median of {starts}", "ready, s", "resident", "anonymous", "mapped files")
for name, run in kinds.items():
    report.row(name, f"{run['ready_s']:.3f}", *(report.megabytes(run[part]) for part in ("resident", "anonymous", "mapped")))
report.write(out, {"starts": starts, "first": medians(first), "again": medians(again), "runs": {"first": first, "again": again}})
