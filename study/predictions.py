"""What confirmed students, and those who taught them, say of each test image: `results/predictions.parquet`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from takd.study.folder import PREDICTIONS, StudyFolder

NAME, LABEL = "name", "label"
Classes = np.ndarray[Any, np.dtype[np.uint16]]


def read_predictions(folder: StudyFolder) -> pa.Table | None:
    """A row a test image, in the data set's order: `name` (null where none is known), `label`, and by stage key the
    class that the stage chose, as uint16. None where there are none, or they can't be read: they are made again."""
    try:
        return pq.read_table(io.BytesIO(folder.storage.read(f"{folder.name}/{PREDICTIONS}")))
    except (FileNotFoundError, pa.ArrowException):
        return None


def add_predictions(
    folder: StudyFolder, labels: Classes, names: Sequence[str] | None, chosen: Mapping[str, Classes]
) -> None:
    """Adds the classes `[n]` that stages chose, by key, to those that are there."""
    columns: dict[str, Any] = {
        NAME: pa.array(names if names else [None] * len(labels), pa.string()),
        LABEL: pa.array(labels, pa.uint16()),
    }
    known = read_predictions(folder)
    if known is not None and known.num_rows == len(labels):
        columns = {name: known[name] for name in known.column_names} | columns
    columns |= {key: pa.array(each, pa.uint16()) for key, each in chosen.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    folder.write(PREDICTIONS, sink.getvalue().to_pybytes())


def predicted_stages(folder: StudyFolder) -> set[str]:
    """The keys of the stages whose classes are there."""
    try:
        schema = pq.read_schema(io.BytesIO(folder.storage.read(f"{folder.name}/{PREDICTIONS}")))
    except (FileNotFoundError, pa.ArrowException):
        return set()
    return set(schema.names) - {NAME, LABEL}


def right_by_stage(folder: StudyFolder) -> dict[str, bytes]:
    """By stage key a bit a test image, 1 where its class was chosen; the first image is the highest bit."""
    table = read_predictions(folder)
    if table is None:
        return {}
    label = table[LABEL].to_numpy()
    keys = [name for name in table.column_names if name not in (NAME, LABEL)]
    return {key: np.packbits(table[key].to_numpy() == label).tobytes() for key in keys}
