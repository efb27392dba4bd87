"""A student as PyTorch's own files: its graph as an exported program, and as a Python file that needs this project not.

Both come from the graph that `torch.export` traces, so that any module the project builds, or borrows, can be exported.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind

from takd.trainables.datasets.conversion import Normalization
from takd.trainables.datasets.sources import ImageShape

HELD = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}  # what a graph takes beside its images
NAMES_PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")  # of this machine


class WithPreprocessing(nn.Module):
    """Images as they are, uint8 `[batch, channels, height, width]`, to probabilities `[batch, classes]`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, student: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.student = student
        scale, shift = normalization.of_bytes()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images.float() * self.scale + self.shift).softmax(dim=1)


def traced(module: nn.Module, image_shape: ImageShape, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """The graph of a module in evaluation mode, for batches of any size."""
    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        example = (torch.zeros(2, *image_shape, dtype=dtype),)
        return export(module, example, dynamic_shapes=({0: Dim("batch")},))


def pt2_file(program: ExportedProgram) -> bytes:
    """The same bytes for the same graph and weights: nothing says where they were traced."""
    for node in program.graph.nodes:
        for name in NAMES_PLACES:
            node.meta.pop(name, None)
    program.example_inputs = None
    sink = io.BytesIO()
    torch.export.save(program, sink)
    return sink.getvalue()


def pt2_model(content: bytes) -> Callable[[Tensor], Tensor]:
    """What an exported program computes."""
    return torch.export.load(io.BytesIO(content)).module()


def weights_file(program: ExportedProgram, weights: Mapping[str, Tensor]) -> bytes:
    """The student's weights as they are, or with the constants that the graph needs beside them."""
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    if not constants:
        return save(dict(weights))
    everything = {**program.state_dict, **constants}
    return save({name: tensor.detach().contiguous().clone() for name, tensor in everything.items()})


def load_file(
    program: ExportedProgram,
    title: str,
    image_shape: ImageShape,
    classes: Sequence[str],
    normalization: Normalization,
) -> str:
    """Python source that rebuilds the student from `student.safetensors`, with torch and safetensors alone."""
    *held, images = program.graph_signature.input_specs
    if images.kind != InputKind.USER_INPUT or any(spec.kind not in HELD for spec in held):
        raise TypeError(f"{title} takes more than images and weights")
    source = program.graph.python_code("self").src.strip()
    arguments = ", ".join(spec.arg.name for spec in program.graph_signature.input_specs)
    return _LOAD.format(
        title=title,
        shape=", ".join(map(str, ("n", *image_shape))),
        outputs=len(classes),
        classes=tuple(classes),
        mean=normalization.mean,
        std=normalization.std,
        names=_lines(spec.target for spec in held),
        parameters=_lines(spec.target for spec in held if spec.kind == InputKind.PARAMETER),
        graph=source.replace(f"def forward(self, {arguments}):", f"def graph({arguments}):", 1),
    )


def _lines(names: Iterable[str | None]) -> str:
    return "".join(f"    {name!r},\n" for name in names)


_LOAD = '''"""{title}, rebuilt from its graph; torch and safetensors are all it needs.

    from load import load, predict

    student = load()
    probabilities = predict(student, images)  # uint8 [{shape}] as the pixels are, 0 to 255
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import device, inf, nan

CLASSES = {classes!r}
MEAN, STD = {mean!r}, {std!r}  # by channel, of pixels in [0, 1]

# The tensors that the graph takes, in its order, and those among them that were trained.
TENSORS = (
{names})
PARAMETERS = {{
{parameters}}}


class Student(torch.nn.Module):
    """Normalised float32 images [{shape}] to logits [n, {outputs}], as in evaluation mode whatever the mode is."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner._modules[part]
            if name in PARAMETERS:
                owner.register_parameter(last, torch.nn.Parameter(tensor))
            else:
                owner.register_buffer(last, tensor)

    def forward(self, images):
        tensors = {{**dict(self.named_parameters()), **dict(self.named_buffers())}}
        (logits,) = graph(*(tensors[name] for name in TENSORS), images)
        return logits


def load(file=Path(__file__).with_name("student.safetensors")):
    return Student(load_file(file)).eval()


def preprocess(images):
    """uint8 [{shape}], 0 to 255, to what the student takes."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (MEAN, STD))
    return images.float() * (1 / (255 * std)) + -mean / std


@torch.no_grad()
def predict(student, images):
    """Probabilities [n, {outputs}] of the CLASSES, for uint8 [{shape}]."""
    return student(preprocess(images)).softmax(dim=1)


{graph}
'''
