"""Read a wandb run back from its `.wandb` file: LevelDB's log format (32 KiB blocks) around protobuf records."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32_768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[Any]:
    """All records of a file, in order."""
    data, place, found, begun = path.read_bytes(), HEADER, [], b""
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # what is left of a block is empty
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        part = data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        begun = part if kind in (FULL, FIRST) else begun + part
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            found.append(record)
    return found


def read_run(path: Path) -> dict[str, Any]:
    """Id, name, group, project, config, history (one dict a line), summary and artifacts (name → files) of a run."""
    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": {}}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"name": record.run.display_name, "group": record.run.run_group, "project": record.run.project}
            run["id"] = record.run.run_id
            run["config"] |= values(record.run.config.update)
        elif kind == "config":
            run["config"] |= values(record.config.update)
        elif kind == "history":
            run["history"].append(values(record.history.item))
        elif kind == "summary":
            run["summary"] |= values(record.summary.update)
        elif kind == "artifact":
            entries = [entry.path for entry in record.artifact.manifest.contents]
            run["artifacts"][record.artifact.name] = {"type": record.artifact.type, "files": entries}
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            artifact = record.request.log_artifact.artifact
            entries = [entry.path for entry in artifact.manifest.contents]
            run["artifacts"][artifact.name] = {"type": artifact.type, "files": entries}
    return run


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
