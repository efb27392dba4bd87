"""Files of weights: a state dict out of whatever was saved around it, which pixels it expects, and one canonical form.

Nothing in a file can run code, and no error says how it could.
"""

import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from takd.search_spaces import InputError, some
from takd.trainables.datasets.conversion import Normalization
from takd.trainables.store.artifacts import PRETRAINED
from takd.trainables.store.storage import first_line

# Under which training scripts save a state dict beside other things. Of two the earlier is read: where there is a
# moving average of the weights (EMA), what a script reports is of that.
ENTRIES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model")
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")  # of DataParallel and of torch.compile
_NOT_OF_MODELS = ("aux", "AuxLogits", "n_averaged")  # heads for training alone, and the counter of AveragedModel
_GLOBAL = re.compile(r"Unsupported (?:global|class)[: ]+(?:GLOBAL )?([\w.]+)")
_TOLD = 3  # tensors that don't fit, of those that an error names


class MissingWeightsError(InputError):
    """Weights are not on this machine, and can't be fetched."""


@dataclass(frozen=True)
class Pretrained:
    """Weights and buffers by name; by which mean and deviation of pixels in [0, 1], None: not known."""

    tensors: dict[str, Tensor]
    normalization: Normalization | None
    classes: list[str] | None = None  # that a file names, in its order


def read_file(path: Path, setting: str = "pretrained") -> Pretrained:
    """All that a file of weights has, the head included, by the names that the model itself gives.

    `setting` is the key of a space that names the file. Raises InputError, and MissingWeightsError where there is none.
    """
    read = _READERS.get(path.suffix)
    expected = "imagenet, or a path" if setting == "pretrained" else "a path"
    if read is None:
        raise InputError(f"{setting} {path}: expected {expected} to a .safetensors or .pth file")
    if not path.is_file():
        raise MissingWeightsError(f"{setting} {path}: no such file; expected {expected} to weights")
    try:
        found = read(path)
        return replace(found, tensors=_plain_names(found.tensors))
    except _RefusedError as error:
        raise InputError(f"{setting} {path}: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{setting} {path}: can't be read as weights ({first_line(error)})") from None
    except Exception:  # torch has no base class for what it raises of a file that is something else
        raise InputError(f"{setting} {path}: can't be read as weights; expected tensors by name") from None


class _RefusedError(Exception):
    """What is wrong with a file, in words of ours."""


def _cut_short(kind: str) -> _RefusedError:
    return _RefusedError(
        f"can't be read as {kind}: the file is cut short or damaged; copy or download it again, and compare its size"
    )


def _read_safetensors(path: Path) -> Pretrained:
    content = path.read_bytes()
    try:
        found = unpacked(content)
    except safetensors.SafetensorError:
        raise _cut_short("safetensors") from None
    if (start := start_in(content)) is None:
        return found
    began = path.absolute().parents[2] / PRETRAINED / f"{start.digest}.safetensors"  # of a root that is a folder
    if not began.is_file():
        raise _RefusedError(
            "has those layers alone that a stage of takd has trained; the others are below that study's root, in "
            f"{PRETRAINED}/{began.name}; give what `takd export` wrote, or the file in its place below the root"
        )
    return replace(found, tensors=completed(found.tensors, start, unpacked(began.read_bytes()).tensors))


def _read_torch(path: Path) -> Pretrained:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(file):  # its directory is at its end
            raise _cut_short("weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except EOFError:
        raise _cut_short("weights") from None
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error) or "unexpected EOF" in str(error):
            raise _cut_short("weights") from None
        raise
    except pickle.UnpicklingError as error:
        if objects := _refused_objects(path, str(error)):
            raise _RefusedError(
                f"can't be read as weights (it holds {objects}; only tensors, numbers and text are read, as anything "
                "else can run code); where the file was made, save the state dict alone: "
                'torch.save(model.state_dict(), "weights.pth")'
            ) from None
        raise
    return Pretrained(_state_dict(content), None, _classes(content))


_READERS: dict[str, Callable[[Path], Pretrained]] = {
    ".safetensors": _read_safetensors,
    # As PyTorch's own scripts, ImageNet's example (`.pth.tar`), the Hugging Face Hub and Lightning name theirs.
    **dict.fromkeys((".pth", ".pt", ".tar", ".bin", ".ckpt"), _read_torch),
}


def _refused_objects(path: Path, message: str) -> str:
    """What the safe loader takes exception to, for people; the message of torch names the first alone."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # written before torch 1.6, or by pickle itself
        names = _GLOBAL.findall(message)
    names = [re.sub(r"[^\w.]", "?", name) for name in names]  # they are the file's words
    numpy = sorted(name for name in names if name.startswith("numpy."))
    words = [f"NumPy scalars or arrays ({', '.join(numpy)})"] if numpy else []
    return " and ".join([*words, *(name for name in names if name not in numpy)])


def _state_dict(content: Any) -> dict[str, Tensor]:
    """Raises ValueError where there is none."""
    while isinstance(content, dict) and (inner := _inner(content)) is not None:
        content = inner
    if not isinstance(content, dict) or not content or not all(map(_is_weight, content.items())):
        raise ValueError("expected a state dict: tensors by name")
    return content


def _inner(content: dict[Any, Any]) -> dict[Any, Any] | None:
    return next((content[name] for name in ENTRIES if isinstance(content.get(name), dict)), None)


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DataParallel, `torch.compile` and averages of weights put before names."""
    plain = {_WRAPPERS.sub("", name): each for name, each in tensors.items()}
    if len(plain) < len(tensors):
        raise ValueError("some weights are there twice, with and without module. or _orig_mod. before their names")
    return plain


def fitting(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], complaint: str) -> dict[str, Tensor]:
    """Of given weights those that a model expects, in its order and kinds of numbers, copied.

    Raises InputError that starts with the complaint where a shape is another, or a weight is missing or left over.
    """
    given = {name: each for name, each in given.items() if not name.startswith(_NOT_OF_MODELS)}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # old files have none
    wrong = [
        f"{name} is {list(given[name].shape)}, the model's {list(each.shape)}"
        if name in given
        else f"{name} is missing"
        for name, each in expected.items()
        if (name not in given and name not in counters) or (name in given and given[name].shape != each.shape)
    ]
    wrong += [f"{name} is none of the model's" for name in given if name not in expected]
    if wrong:
        raise InputError(f"{complaint}: {some(wrong, _TOLD, separator='; ')}")
    return {
        name: given.get(name, torch.tensor(0)).to(each.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, each in expected.items()
    }


def put_into(module: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """As `load_state_dict`, of weights with the names that this version of the model has.

    Some models (torchvision's mnasnet) refuse weights that do not say of which version they are.
    """
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(state, strict=strict)


def packed(weights: Pretrained) -> bytes:
    """safetensors, the same bytes wherever and whatever the weights were read from."""
    # One entry: safetensors writes several in any order.
    about = {"normalization": json.dumps(weights.normalization._asdict())} if weights.normalization else None
    return safetensors.torch.save(weights.tensors, about)


class Start(NamedTuple):
    """What a stage started from, and did not change: it is left out of the stage's own file."""

    digest: str  # of the pretrained weights
    names: list[str]  # of their tensors

    def metadata(self) -> dict[str, str]:
        """For the file that leaves them out. One entry: safetensors writes several in any order."""
        return {_START: json.dumps(self._asdict())}


_START = "start"


def start_in(content: bytes) -> Start | None:
    """Of safetensors that were loaded before; None where nothing is left out."""
    text = _metadata(content).get(_START)
    return None if text is None else Start(**json.loads(text))


def completed(own: Mapping[str, Tensor], start: Start, began: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stage's whole weights, from its own and those that it started from."""
    return {name: began[name] for name in start.names} | dict(own)


def _metadata(content: bytes) -> dict[str, str]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def unpacked(content: bytes) -> Pretrained:
    """What `packed` wrote, and any other safetensors. Raises SafetensorError, and ValueError on odd metadata."""
    tensors = safetensors.torch.load(content)  # first: it checks that there is a header
    about = _metadata(content)
    return Pretrained(tensors, _described(about), _classes({name: _json_or_text(each) for name, each in about.items()}))


def _classes(about: Any) -> list[str] | None:
    """The names of the classes that stand beside the weights, in the order of the last layer."""
    for name in ("classes", "class_names", "class_to_idx"):
        found = about.get(name) if isinstance(about, dict) else None
        if isinstance(found, dict) and all(isinstance(each, int) for each in found.values()):
            found = sorted(found, key=found.__getitem__)
        if isinstance(found, list | tuple) and found and all(isinstance(each, str) for each in found):
            return list(found)
    return None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _described(about: Mapping[str, str]) -> Normalization | None:
    """By a file's metadata: `mean` and `std`, or both in `normalization` as here; raises ValueError on what is none."""
    given = json.loads(about["normalization"]) if "normalization" in about else about
    if "mean" not in given or "std" not in given:
        return None
    mean, std = (json.loads(each) if isinstance(each, str) else each for each in (given["mean"], given["std"]))
    return normalization_of(mean, std)


def normalization_of(mean: Any, std: Any) -> Normalization:
    """Raises ValueError, or TypeError, on what are no numbers by channel."""
    found = Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    if len(found.mean) not in (1, 3) or len(found.std) != len(found.mean) or min(found.std) <= 0:
        raise ValueError(f"mean {mean} and std {std} are not three numbers each, or one")
    return found
