"""A student as ONNX: written, checked, quantised, run and timed."""

import importlib
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from takd.search_spaces import InputError

INPUT = "images"
LOGITS, PROBABILITIES = "logits", "probabilities"
LATENCY_BATCHES = (1, 32)
LATENCY_THREADS = 1
WARM_UP, RUNS, LATENCY_SECONDS = 20, 2000, 0.5  # at most, of runs at one batch size
QUANTIZED = ["Conv", "Gemm", "MatMul"]  # a softmax in int8 has probabilities in steps of 1/256

Array = NDArray[Any]


def needs_onnx(command: str) -> None:
    """Raises InputError where the extra is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime", "PIL"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise InputError(f"{command} needs {name}; install it with: pip install 'takd[export]'") from None


def onnx_file(program: ExportedProgram, output: str) -> bytes:
    """An ONNX model of any batch size, checked by onnx; the same bytes for the same graph and weights."""
    import onnx

    with _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[output], external_data=False
        )
    assert exported is not None
    model = exported.model_proto
    _forget_places(model)
    _name_batch(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _forget_places(message: Any) -> None:
    """Clears where the exporter found each node: source files of this machine."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                _forget_places(each)


def _name_batch(model: Any) -> None:
    [batch] = [each.type.tensor_type.shape.dim[0].dim_param for each in model.graph.input]
    for each in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in each.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(batch, "batch")


def quantized(model: bytes, images: Array) -> bytes:
    """int8 weights and activations of what costs time, as QDQ, calibrated on images as the model takes them."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(np.array_split(images, max(1, len(images) // 100)))

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.left, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "target"))
        source.write_bytes(model)
        with _quiet():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(str(prepared), str(target), Batches(), per_channel=True, op_types_to_quantize=QUANTIZED)
        return target.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """onnx's and onnxruntime's warnings are about nodes of their own making."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class OnnxModel:
    """A model in onnxruntime, on the CPU; `threads` 0: as many as there are cores."""

    content: bytes
    threads: int = 0

    def __post_init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no base class of their own
            raise InputError(f"no ONNX model that onnxruntime can run ({str(error).splitlines()[0]})") from None
        object.__setattr__(self, "_session", session)

    def __call__(self, images: Array) -> Array:
        """`[batch, classes]`, as the model gives it."""
        output: Array = self._session.run(None, {INPUT: images})[0]  # type: ignore[attr-defined]
        return output


def latency(model: bytes, image: Array) -> list[dict[str, float]]:
    """Milliseconds a call of one thread takes, by batch size: median and 95th percentile. `image` is one, no batch."""
    session, found = OnnxModel(model, LATENCY_THREADS), []
    for size in LATENCY_BATCHES:
        batch = np.repeat(image[None], size, axis=0)
        for _ in range(WARM_UP):
            session(batch)
        seconds: list[float] = []
        while len(seconds) < RUNS and sum(seconds) < LATENCY_SECONDS:
            started = time.perf_counter()
            session(batch)
            seconds.append(time.perf_counter() - started)
        median, late = np.percentile(seconds, [50, 95]) * 1000
        found.append({"batch": size, "median_ms": float(median), "p95_ms": float(late), "runs": len(seconds)})
    return found
