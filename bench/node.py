"""The node that is measured: at RAGGED_URL, with RAGGED_KEY, its process NODE_PROCESS."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import report

# So many searches a node has seen before it looks how hard it must search for them, and some more.
SEEN = 2000
# What a node cannot do at the moment is asked for again, for so long.
RETRY_S = 30
# Searches of a request, where answers matter and not time.
BATCH = 100
# A node is at rest when it has used less than this part of a core for so long: longer than it waits for rows before it joins its segments.
REST_CORES, REST_S = 0.1, 6
REST_S_MAX = 1800


def status_bytes(process: int) -> dict[str, int]:
    """What of the machine's memory a process has, and the most that it had."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    names = {"resident": "VmRSS", "anonymous": "RssAnon", "mapped": "RssFile", "most": "VmHWM"}
    return {name: int(fields[field].split()[0]) << 10 for name, field in names.items()}


class Node:
    def __init__(self) -> None:
        self.url = os.environ["RAGGED_URL"]
        self.process = int(os.environ["NODE_PROCESS"])
        self.headers = {"authorization": f"Bearer {os.environ['RAGGED_KEY']}", "content-type": "application/json"}

    def call(self, path: str, body: dict | None = None, method: str | None = None) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, self.headers, method=method)
        begun = time.perf_counter()
        while True:
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.read()
            except urllib.error.HTTPError as refusal:
                said = f"{path}: {refusal.code} {refusal.read().decode()}"
                if refusal.code != 503 or time.perf_counter() - begun > RETRY_S:
                    raise RuntimeError(said) from refusal
                report.note(f"again: {said}")
                time.sleep(1)

    def memory(self) -> dict:
        """As the system counts it; `reported` is what the node says to a client."""
        for line in self.call("/metrics").decode().splitlines():
            if line.startswith("process_resident_memory_bytes "):
                return {**status_bytes(self.process), "reported": int(float(line.split()[1]))}
        raise LookupError("the node does not say how much memory it has")

    def memory_parts(self) -> dict:
        return json.loads(self.call("/api/v1/memory"))

    def processor_s(self) -> float:
        """Processor time of all its threads so far."""
        after_name = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def written_bytes(self) -> int:
        """What it has had written to the disk so far."""
        lines = Path(f"/proc/{self.process}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))

    def await_rest(self) -> None:
        """Returns when it has nothing to do any more: no rows to index, no segments to merge."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < REST_S_MAX:
            used, since = self.processor_s(), time.perf_counter()
            time.sleep(REST_S)
            if self.processor_s() - used < REST_CORES * (time.perf_counter() - since):
                return
        raise TimeoutError(f"the node was still at work after {REST_S_MAX} s")


class Collection:
    """A collection whose vectors clients send."""

    def __init__(self, node: Node, name: str, dimension: int) -> None:
        self.node, self.name = node, name
        self.path = f"/api/v1/collections/{name}"
        node.call("/api/v1/collections", {"name": name, "embedding": {"dimension": dimension}})

    def delete(self) -> None:
        self.node.call(self.path, method="DELETE")

    def fill(self, documents: Path, count: int, probe: list[float]) -> dict:
        """Imports documents, and waits until they are indexed and then until the node is at rest; how long each took, and what it cost."""
        used, written, begun = self.node.processor_s(), self.node.written_bytes(), time.perf_counter()
        memory = {}
        command = ["ragged", "import", str(documents), "--collection", self.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        imported_s = time.perf_counter() - begun
        written_importing = self.node.written_bytes() - written
        memory["imported"] = self.node.memory()
        search = {"vector": probe, "limit": 1, "explain": True}
        while self.has_rows_to_index(search):
            time.sleep(0.1)
        indexed_s = time.perf_counter() - begun
        memory["indexed"] = self.node.memory()
        self.node.await_rest()
        rest_s = time.perf_counter() - begun - REST_S
        memory["at rest"] = self.node.memory()
        processor_us = (self.node.processor_s() - used) * 1e6
        stored = json.loads(self.node.call(self.path))["documents"]
        if stored != count:
            raise ValueError(f"{count} documents were imported, and there are {stored}")
        return {
            "documents": count,
            "imported_s": round(imported_s, 3),
            "imported_per_s": round(count / imported_s),
            "indexed_s": round(indexed_s, 3),
            "rest_s": round(max(rest_s, indexed_s), 3),
            "processor_us_per_document": round(processor_us / count, 2),
            "written_bytes_per_document_imported": round(written_importing / count),
            "written_bytes_per_document": round((self.node.written_bytes() - written) / count),
            "memory": memory,
        }

    def has_rows_to_index(self, search: dict) -> bool:
        return any("not indexed yet" in step and " 0 of them" not in step for step in self.steps(search))

    def steps(self, search: dict) -> list[str]:
        """How the shards ran a search with `explain`."""
        plan = json.loads(self.node.call(f"{self.path}/search", search))["plan"]
        return [step for shard in plan for step in shard["steps"]]

    def found(self, searches: list[dict]) -> list[list[str]]:
        """The ids of the documents that each search finds."""
        found = []
        for first in range(0, len(searches), BATCH):
            answer = json.loads(self.node.call(f"{self.path}/search/batch", {"searches": searches[first : first + BATCH]}))
            found += [[hit["document_id"] for hit in result["hits"]] for result in answer["results"]]
        return found

    def found_at_first(self, searches: list[dict]) -> list[list[str]]:
        """As `found`, and waits until the node has tried its indexes with these searches: then it searches as hard as they need. Few are sent again, until there are
        as many as it wants to have seen."""
        found = self.found(searches)
        for _ in range(len(searches), SEEN, len(searches)):
            self.found(searches)
        self.node.await_rest()
        return found

    def load(self, clients: int, seconds: float, **options: object) -> dict:
        """What `ragged bench` measures with so many clients, each of which sends when it has its answer."""
        return load(self.name, clients, seconds, **options)


def load(collection: str, clients: int, seconds: float, **options: object) -> dict:
    command = ["ragged", "bench", "--collection", collection, "--clients", str(clients), "--rate", "max"]
    command += ["--seconds", str(seconds), "--json"]
    for name, value in options.items():
        command += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)
