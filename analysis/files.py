"""Where a study's files are below a root, a folder or a bucket, and how they are read. Nothing here writes."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from takd.analysis.cost import LATENCY_FILE
from takd.analysis.tables import cells_of, remembered
from takd.search_spaces import Derived, InputError, Space, some, space_from
from takd.search_spaces.yaml_text import read_yaml

Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Results:
    """The tables of a study. Where several were named, `trials` and `epochs` are the first one's."""

    root: str
    names: tuple[str, ...]
    epochs: pd.DataFrame
    all_trials: pd.DataFrame  # of all studies named and all of their cells: see the columns `study` and `cell`
    cell: str | None = None

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Of one study and one cell; raises InputError where several cells are there and none, or no such, is named."""
        one = len(self.names) == 1
        rows = self.all_trials if one else self.all_trials[self.all_trials["study"] == self.names[0]]
        cells = cells_of(rows)
        if self.cell is None and len(cells) < 2:
            return rows
        if self.cell not in cells:
            asked = "has" if self.cell is None else f"has no cell {self.cell!r}, but"
            listed = some(map(repr, cells), separator=" or ")
            raise InputError(f"study {self.names[0]}: {asked} {len(cells)} cells; name one in TAKD_CELL: {listed}")
        return rows[rows["cell"] == self.cell]

    @cached_property
    def predictions(self) -> pd.DataFrame | None:
        """Of one study, a row a test image: `name`, `label`, and by stage key the chosen class; None without."""
        files, base = open_root(self.root)
        try:
            place = f"{base}/{self.names[0]}/results/predictions.parquet"
            return pq.read_table(place, filesystem=files).to_pandas()
        except (FileNotFoundError, pa.ArrowException):
            return None

    @cached_property
    def latencies(self) -> dict[str, float]:
        """By model the milliseconds that one image takes, as far as they were measured for the studies named."""
        files, base = open_root(self.root)
        found: dict[str, float] = {}
        for name in self.names:
            with suppress(OSError, ValueError, TypeError):
                found |= _json(files, f"{base}/{name}/{LATENCY_FILE}")
        return found

    def upstream_logits(self) -> dict[str, Logits | None]:
        """By model, the teacher first and then by size, the soft targets of the stages that others learn from.

        Of several stages of one model, the one that most paths use. None where the artifact is not there.
        """
        rows = self.trials[(self.trials["role"] != "student") & (self.trials["status"] == "done")]
        uses = rows.groupby(["role", "model", "stage_key"]).agg(uses=("path", "size"), size=("parameters", "max"))
        most = uses.reset_index().sort_values("uses").groupby(["role", "model"]).tail(1)
        ordered = most.sort_values(["role", "size"], ascending=False)  # teacher before assistant
        return {row["model"]: soft_targets(self.root, row["stage_key"]) for row in ordered.to_dict("records")}


@remembered
def read_results(root: str, names: str, cell: str | None = None) -> Results:
    """Of a study, or of several with commas between; raises InputError where one has no results yet.

    `cell` is one of the study's factors' cells; see `takd.search_spaces.Space.cells`.
    """
    studies = tuple(name.strip() for name in names.split(",") if name.strip())
    if not studies:
        raise InputError(f"study {names!r}: expected a study's name, or several with commas between")
    all_trials = [_read(root, name, "trials").assign(study=name) for name in studies]  # a copy has another name
    return Results(
        root, studies, _read(root, studies[0], "epochs"), pd.concat(all_trials, ignore_index=True), cell or None
    )


def read_space(root: str, name: str) -> Space | None:
    """A study's space as it was last run; None where there is none that this version can read."""
    files, base = open_root(root)
    try:
        with files.open_input_file(f"{base}/{name}/space.yaml") as file:
            return space_from(read_yaml(file.readall()), "space.yaml")
    except (OSError, InputError, yaml.YAMLError):
        return None


def image_counts(root: str, key: str) -> dict[str, int]:
    """By split the images of the data set that a stage was trained on; empty where its artifact is not there."""
    files, base = open_root(root)
    try:
        sizes = _json(files, f"{base}/artifacts/{key}/stage.json")["input"]["dataset"]["sizes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(split): int(size) for split, size in sizes.items()}


def _read(root: str, name: str, kind: str) -> pd.DataFrame:
    files, base = open_root(root)
    try:
        return pq.read_table(f"{base}/{name}/results/{kind}.parquet", filesystem=files).to_pandas()
    except FileNotFoundError:
        if files.get_file_info(f"{base}/{name}").type == FileType.NotFound:
            raise InputError(f"study {name}: none below {root}; `takd list` says which there are") from None
        raise InputError(
            f"study {name}: no results/{kind}.parquet below {root}; `takd results {name}` writes it"
        ) from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"study {name}: results/{kind}.parquet below {root} can't be read ({reason}); "
            f"`takd results {name}` writes it again"
        ) from None


def soft_targets(root: str, key: str) -> Logits | None:
    """Logits `[training images, classes]` of a stage, on all training images; None where there are none."""
    files, base = open_root(root)
    try:
        stage = _json(files, f"{base}/artifacts/{key}/stage.json")
        folder, name, column = f"artifacts/{key}", "soft_targets.arrow", "view_0"
        if name in stage["files"]:  # written before what is derived had a place of its own
            digest = stage["files"][name]
        else:
            folder, name, column = f"derived/{_derived_from(stage).key}", "values.arrow", "values"
            digest = _json(files, f"{base}/{folder}/derived.json")["files"][name]
        # In a bucket a file's name begins with its digest.
        place = name if "://" not in root else f"{digest[:16]}.{name}"
        with files.open_input_file(f"{base}/{folder}/{place}") as file:
            rows = pa.ipc.open_file(file).read_all().column(column).combine_chunks()
    except (FileNotFoundError, KeyError):
        return None
    return rows.flatten().to_numpy().reshape(len(rows), -1)


def _json(files: FileSystem, path: str) -> Any:
    with files.open_input_file(path) as file:
        return json.loads(file.readall())


def _derived_from(stage: Mapping[str, Any]) -> Derived:
    """The soft targets on the images as they are, of a stage by its stage.json."""
    given, files = stage["input"], stage["files"]
    weights = files.get("model.safetensors") or files["logits.safetensors"]
    return Derived(weights=weights, model=given.get("model"), dataset=given["dataset"])


def open_root(root: str) -> tuple[FileSystem, str]:
    """What pyarrow reads a root with, and the root's path there; raises InputError on a URI that it can't open."""
    if "://" not in root:
        return LocalFileSystem(), root.rstrip("/")
    try:
        files, base = FileSystem.from_uri(root)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"root {without_secret(root)}: {error}; expected a folder, s3://... or gs://...") from None
    return files, base.rstrip("/")


def without_secret(root: str) -> str:
    """An address without what opens it: keys and options of a bucket. A path stays as it is."""
    parts = urlsplit(root)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")) if "://" in root else root
