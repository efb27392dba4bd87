"""Whether a space can run: the checks that need its models, its data and its pretrained weights. Trains nothing.

A study's process calls `check` and `keep_pretrained` in another (`takd.study.apart`): they load torch.
"""

from collections.abc import Iterator, Sequence

import torch

from takd.search_spaces import (
    ROLES,
    Configuration,
    InputError,
    Role,
    Space,
    Stage,
    Training,
    examples_of,
)
from takd.study.folder import StudyFolder
from takd.study.options import Checked
from takd.study.search.optimization import find_search
from takd.trainables.datasets.dataset import Dataset, load, transfer_set
from takd.trainables.models.families import check_model, normalises_batches, parameters_of
from takd.trainables.models.pretrained import canonical_weights, check_takes_pretrained
from takd.trainables.models.weights_files import MissingWeightsError
from takd.trainables.store.storage import sha256
from takd.trainables.training.transfer import check_layer


def check(space: Space, source: str, folder: StudyFolder) -> Checked:
    """The space with the digests of its pretrained weights, its data, and warnings about sizes; raises InputError."""
    dataset, warnings = check_space(space, source)
    largest = max(dataset.class_counts["validation"])
    return Checked(with_weights(space, dataset, source, folder), dataset.fingerprint, largest, warnings)


def keep_pretrained(space: Space, source: str, folder: StudyFolder) -> None:
    """Puts pretrained weights whose digests a checked space has below the root, those that are not there."""
    dataset, store = load(space.dataset), folder.artifacts
    for role, section, model in _roles(space):
        digest = space.weights.get(role, {}).get(model)
        if digest is not None and not store.has_pretrained(digest):
            content = canonical_weights(model, str(section.pretrained), dataset.image_shape, len(dataset.classes))
            if sha256(content) != digest:
                raise InputError(
                    f"{source}: pretrained {section.pretrained}: changed while the study started; run again"
                )
            store.keep_pretrained(content)


def check_space(space: Space, source: str) -> tuple[Dataset, list[str]]:
    """The space's dataset, and warnings about sizes; raises InputError on models or data that can't be."""
    try:
        dataset = load(space.dataset)
        used = {(stage.role, stage.model): stage for stage, *_ in stages_by_model(space, dataset)}
        for who, section, model in _roles(space):  # also what no arm uses
            stage = used.get((who, model))
            dropout = stage.recipe.dropout if stage else None
            try:
                module = check_model(model, dataset.image_shape, len(dataset.classes), dropout)
            except InputError as error:
                raise InputError(f"{who}: {error}") from None
            if stage:
                _check_layers(stage, module, section)
        for role, part in (("teacher", space.teacher), ("assistants", space.assistants), ("student", space.student)):
            _check_transfer_sets(role, part, dataset)
            _check_augmentation(role, part, dataset)
        for _, section, model in _roles(space):
            if section.pretrained is not None:
                check_takes_pretrained(model)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return dataset, [] if space.allow_any_size else list(_odd_sizes(space, dataset))


def _check_layers(stage: Stage, module: torch.nn.Module, section: Training) -> None:
    role = "assistants" if stage.role == "assistant" else stage.role
    for place, layer in examples_of(section.recipe.get("finetune_from")):
        if layer is not None:
            try:
                check_layer(stage.model, module, str(layer))
            except InputError as error:
                raise InputError(f"{role}.recipe.{error}".replace("from is", f"from{place} is")) from None
    frozen = [each for _, each in examples_of(section.recipe.get("freeze_norm"))]
    if any(frozen) and not normalises_batches(module):
        raise InputError(f"{role}.recipe.freeze_norm is true; {stage.model} has no batch normalisation")
    if normalises_batches(module) and not all(frozen):
        for place, size in examples_of(section.recipe.get("batch_size")):
            if size == 1:
                raise InputError(
                    f"{role}.recipe.batch_size{place} is 1; {stage.model} normalises batches, of 2 at least"
                )


def _roles(space: Space) -> Iterator[tuple[Role, Training, str]]:
    """Every role with its section and each model it may have."""
    sections: list[tuple[Role, Training, Sequence[str]]] = [
        ("teacher", space.teacher, space.teacher.models),
        ("assistant", space.assistants, space.assistants.models),
        ("student", space.student, [space.student.model]),
    ]
    for role, section, models in sections:
        yield from ((role, section, model) for model in models)


def with_weights(space: Space, dataset: Dataset, source: str, folder: StudyFolder) -> Space:
    """The space with the digests of its pretrained weights; writes nothing.

    Where weights are gone from this machine, those that the study was started with will do if the root has them.
    """
    found: dict[Role, dict[str, str]] = {}
    for role, section, model in _roles(space):
        if section.pretrained is not None:
            try:
                content = canonical_weights(model, section.pretrained, dataset.image_shape, len(dataset.classes))
                digest = sha256(content)
            except MissingWeightsError as error:
                search = find_search(folder)
                known = search.space.weights.get(role, {}).get(model) if search else None
                if known is None or not folder.artifacts.has_pretrained(known):
                    raise InputError(f"{source}: {error}") from None
                digest = known
            except InputError as error:
                raise InputError(f"{source}: {error}") from None
            found.setdefault(role, {})[model] = digest
    return space.model_copy(update={"weights": found})


def _check_augmentation(role: str, section: Training, dataset: Dataset) -> None:
    _, height, width = dataset.image_shape
    for place, augment in examples_of(section.recipe.get("augment")):
        if augment == "flip-rotate" and height != width:
            raise InputError(
                f"{role}.recipe.augment{place} is flip-rotate, which turns squares; images of {dataset.name} are "
                f"{width} x {height}; crop-flip takes any"
            )


def _check_transfer_sets(role: str, section: Training, dataset: Dataset) -> None:
    for place, examples in examples_of(section.recipe.get("examples")):
        if examples is not None:
            try:
                transfer_set(dataset.train.labels, int(examples), seed=0)
            except InputError as error:
                raise InputError(f"{role}.{error}".replace("examples is", f"examples{place} is")) from None


def stages_by_model(space: Space, dataset: Dataset) -> list[list[Stage]]:
    """The stages of each model in each role, with every teacher and the first of whatever else is varied.

    Of the confirm phase, what its students learn from: where the path has fresh seeds too, these are other stages.
    """
    found: dict[tuple[Role, str], dict[str, Stage]] = {}
    for arm in space.all_arms:
        varied = space.varied(arm)
        first = {name: next(iter(value.examples()))[1] for name, value in varied.items()}
        for _, teacher in varied["teacher.model"].examples() if "teacher.model" in varied else [("", None)]:
            chosen = first | ({"teacher.model": teacher} if teacher else {})
            [path] = space.paths(Configuration(arm, chosen), dataset.fingerprint, [0])
            for stage in path.stages:
                found.setdefault((stage.role, stage.model), {})[stage.key] = stage
        for path in space.confirming_paths(Configuration(arm, first), dataset.fingerprint):
            for stage in path.stages[:-1]:
                found.setdefault((stage.role, stage.model), {})[stage.key] = stage
    return [list(found[each].values()) for each in sorted(found, key=lambda each: ROLES.index(each[0]))]


def _odd_sizes(space: Space, dataset: Dataset) -> Iterator[str]:
    def parameters(model: str) -> int:
        return parameters_of(model, dataset.image_shape, len(dataset.classes))

    teacher = min(space.teacher.models, key=parameters)
    student = parameters(space.student.model)
    silence = "allow_any_size: true silences this"
    for model in space.assistants.models:
        if parameters(model) >= parameters(teacher):
            yield f"assistants.models: {model} is no smaller than the teacher {teacher}; {silence}"
        if parameters(model) <= student:
            yield f"assistants.models: {model} is no larger than the student {space.student.model}; {silence}"
