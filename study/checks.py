"""Whether a space can run: the checks that need its models, its data and its weights. Trains nothing.

A study's process calls `check` and `keep_inputs` in another (`takd.study.apart`): they load torch.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from takd.search_spaces import (
    ROLES,
    Arm,
    Configuration,
    DatasetFingerprint,
    InputError,
    Role,
    Space,
    Stage,
    Term,
    Training,
    examples_of,
    first_of,
    sizes_of,
)
from takd.search_spaces.doubts import doubts
from takd.search_spaces.methods import EMBEDDING, STAGE, compared_stages
from takd.search_spaces.sections import LOGITS
from takd.search_spaces.stage import BELOW, HEAD
from takd.study.code_checks import try_metric, use_code, with_code
from takd.study.folder import StudyFolder
from takd.study.loops import faster_in_loop
from takd.study.options import Checked
from takd.study.search.optimization import find_search
from takd.trainables.datasets.dataset import Dataset, any_examples, is_own, load, load_for, transfer_set
from takd.trainables.datasets.sources import ImageShape
from takd.trainables.models.families import build, check_model, family_of, normalises_batches, parameters_of, size_of
from takd.trainables.models.frozen import cut_in, head_in
from takd.trainables.models.given import canonical_given
from takd.trainables.models.pretrained import canonical_weights, check_takes_pretrained, without_head
from takd.trainables.models.stage_models import check_heads, check_takes_means
from takd.trainables.models.transfer import check_layer
from takd.trainables.models.weights_files import MissingWeightsError
from takd.trainables.own_code import NO_CODE, Code, use
from takd.trainables.store.storage import sha256
from takd.trainables.training.features import check_map, embedding_in, maps_in, stages_in


def check(space: Space, source: str, folder: StudyFolder) -> Checked:
    """The space with the digests of its code and weights, its data, and warnings; raises InputError."""
    code = use_code(space, source)
    space = with_code(space, source)
    dataset, warnings = check_space(space, source, folder)
    largest = max(dataset.class_counts["validation"])
    checked = with_weights(space, dataset, source, folder)
    return Checked(checked, dataset.fingerprint, largest, warnings, code, own_data(checked, dataset.fingerprint))


def own_data(space: Space, data: DatasetFingerprint) -> tuple[DatasetFingerprint, ...]:
    """Of all images that a checked space learns from those that were converted from a user's files."""
    other = [DatasetFingerprint.model_validate_json(space.transfer_data)] if space.transfer_data is not None else []
    return tuple(each for each in (data, *other) if is_own(each.name))


def keep_inputs(space: Space, data: DatasetFingerprint, source: str, folder: StudyFolder, code: Code = NO_CODE) -> None:
    """Puts below the root what nodes may lack and the root doesn't have: the data set, and weights."""
    use(code)
    dataset = load_for(data, folder.artifacts)
    for each in own_data(space, data):
        if not folder.artifacts.has_dataset(each):
            folder.artifacts.keep_dataset(each, load_for(each, folder.artifacts).folder)
    keep_pretrained(space, source, folder, dataset)


def keep_pretrained(space: Space, source: str, folder: StudyFolder, dataset: Dataset | None = None) -> None:
    """Puts weights whose digests a checked space has below the root, those that are not there: also what is given."""
    dataset, store = dataset or load(space.dataset), folder.artifacts
    for own, role, section, model in _roles_of_cells(space):
        digest = own.weights.get(role, {}).get(model)
        if digest is not None and not store.has_pretrained(digest):
            content = _content(own, role, section, model, dataset)
            if content is None:
                continue  # of another cell, where the model starts from weights
            if sha256(content) != digest:
                what = _place(own, role, section, model)
                raise InputError(f"{source}: {what}: changed while the study started; run again")
            store.keep_pretrained(content)


def _roles_of_cells(space: Space) -> Iterator[tuple[Space, Role, Training, str]]:
    """Every role with its section and each model it may have, and the space of its cell."""
    for cell in space.cells:
        yield from ((cell.space, *each) for each in _roles(cell.space))


def _place(space: Space, role: Role, section: Training, model: str) -> str:
    """What an error calls a file of weights."""
    existing = space.existing(role, model)
    if existing is None:
        return f"pretrained {section.pretrained}"
    return f"{existing.kind} {existing.place}"


def _content(space: Space, role: Role, section: Training, model: str, dataset: Dataset) -> bytes | None:
    """What is kept of a model's weights; None of one that starts from random ones."""
    if existing := space.existing(role, model):
        return canonical_given(existing, model, dataset)
    if section.pretrained is None:
        return None
    return canonical_weights(model, section.pretrained, dataset.image_shape, len(dataset.classes))


def _dataset(name: str, folder: StudyFolder | None) -> Dataset:
    """Of this machine's cache; where that lacks it, what a study that was begun elsewhere keeps below its root."""
    try:
        return load(name)
    except InputError:
        search = find_search(folder) if folder else None
        if folder is None or search is None:
            raise
        known = [search.dataset]
        if search.space.transfer_data is not None:
            known.append(DatasetFingerprint.model_validate_json(search.space.transfer_data))
        for each in known:
            if each.name == name:
                return load_for(each, folder.artifacts)
        raise


def check_space(space: Space, source: str, folder: StudyFolder | None = None) -> tuple[Dataset, list[str]]:
    """The space's dataset, and warnings about sizes and recipes; raises InputError on models or data that can't be.

    With the study's folder also a data set will do that only the root has.
    """
    try:
        dataset = _dataset(space.dataset, folder)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    _check_metric(space, dataset, source)
    transfer_data(space, dataset, source, folder)
    odd: dict[str, list[str]] = {}  # cells by what is odd in them
    try:
        space = space.model_copy(update={"flops": flops_of(space, dataset)})
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    for cell in space.cells:
        try:
            _check_one(cell.space, dataset)
        except InputError as error:
            raise InputError(f"{source}: {cell.where}{error}") from None
        for warning in [] if space.allow_any_size else _odd_sizes(cell.space, dataset):
            odd.setdefault(warning, []).append(cell.name)
    try:
        inside_of(space, dataset)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    sizes = [f"{warning}{_in_cells(cells)}; {SILENCE}" for warning, cells in odd.items()]
    return dataset, [*sizes, *doubts(space, dataset.sizes["train"], dataset.sizes["validation"])]


def _check_metric(space: Space, dataset: Dataset, source: str) -> None:
    """Raises InputError where a split has no image of a class, of which AUC and F1 say nothing then, and where a metric
    of code can't measure the validation images.
    """
    names = {
        space.metric,
        *(str(value) for _, own, _ in _roles(space) for _, value in examples_of(own.recipe.get("select_by"))),
    }
    for name in sorted(names - {"None"}):
        try:
            try_metric(name, dataset.validation.labels, len(dataset.classes))
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
    for split in ("validation", "test") if space.confirm else ("validation",):
        counts = dataset.class_counts.get(split, ())
        for name, count in zip(dataset.classes, counts, strict=False):
            if space.metric in ("auc", "f1") and not count:
                raise InputError(
                    f"{source}: metric is {space.metric}, but the {split} split of {dataset.name} has no image of the "
                    f"class {name}; valid: accuracy, loss"
                )


SILENCE = "allow_any_size: true silences this"


def _in_cells(names: Sequence[str]) -> str:
    """Where a warning holds, of a space with factors."""
    if names == [""]:
        return ""
    return f" (with {names[0]}" + (f", and in {len(names) - 1} more cells)" if len(names) > 1 else ")")


def _check_one(space: Space, dataset: Dataset) -> None:
    _check_sizes(space)
    used = {(stage.role, stage.model): stage for stage, *_ in stages_by_model(space, dataset)}
    for who, section, model in _roles(space):  # also what no arm uses
        if (existing := space.existing(who, model)) and existing.logits is not None:
            continue
        stage = used.get((who, model))
        dropout = stage.recipe.dropout if stage else None
        try:
            module = check_model(model, dataset.image_shape, len(dataset.classes), dropout)
        except InputError as error:
            raise InputError(f"{who}: {error}") from None
        if stage and not stage.given:
            _check_layers(stage, module, section)
    own = {f"assistants.models: {name}: ": space.assistants.section(name) for name in space.assistants.names}
    parts: dict[str, Training] = {"teacher.": space.teacher, "assistants.": space.assistants, "student.": space.student}
    for role, part in (parts | own).items():
        _check_transfer_sets(role, part, dataset)
        _check_augmentation(role, part, dataset)
    standardized = next((f"arms: {arm.name!r}" for arm in space.all_arms if arm.standardized), None)
    if (space.loss.standardize or standardized) and len(dataset.classes) == 2:
        raise InputError(
            f"{standardized or 'loss.standardize is true'}; of two classes, as {dataset.name} has, standardised logits "
            "are 1 and -1 whatever a teacher says; leave it out"
        )
    for role, section, model in _roles(space):
        if section.pretrained is not None and not space.existing(role, model):
            check_takes_pretrained(model, dataset.image_shape, len(dataset.classes))
            _check_dropout(role, section, model, dataset)


def inside_of(space: Space, dataset: Dataset) -> dict[str, dict[str, tuple[int, ...]]]:
    """What methods compare of the inside of models, and what enters layers below which it stands still, by model and
    layer; raises InputError where a method's model has not that."""
    found = _below(space, dataset)
    shape, classes = dataset.image_shape, len(dataset.classes)
    for cell in space.cells:
        for stages in stages_by_model(cell.space, dataset):
            pairs = [(stage, term) for stage in stages for term in stage.terms or () if term.needed != "logits"]
            for stage, term in pairs:
                theirs = [(each.model, term.teacher_layers) for each in stage.upstream]
                for model, layers in ((stage.model, term.student_layers), *theirs):
                    own = found.setdefault(model, {})
                    try:
                        if term.needed == "embedding":
                            own[EMBEDDING] = (embedding_in(model, shape, classes).features,)
                            continue
                        if not (maps := maps_in(model, shape, classes)):
                            raise InputError(f"{model} has none: it has no convolutions")
                        own |= {STAGE + layer: maps[layer] for layer in stages_in(model, shape, classes)}
                        for layer in layers or ():
                            check_map(model, shape, classes, layer)
                            own[layer] = maps[layer]
                    except InputError as error:
                        what = "embeddings" if term.needed == "embedding" else term.needed
                        raise InputError(f"{cell.where}{term.method} compares {what}: {error}") from None
                try:
                    _check_head(stage, term, shape, classes)
                except InputError as error:
                    raise InputError(f"{cell.where}{term.method}: {error}") from None
                if term.needed == "maps":
                    _check_pairs(stage, term, shape, classes)
    return found


def _check_pairs(stage: Stage, term: Term, shape: ImageShape, classes: int) -> None:
    """Raises InputError where a method has not as many layers of the one model as of the other, or none."""
    ends = [stages_in(model, shape, classes) for model in (stage.model, stage.upstream[0].model)]
    known = compared_stages(term.method, *ends)
    own, theirs = term.student_layers or known[0], term.teacher_layers or known[1]
    if len(own) != len(theirs):
        both = " and ".join(
            f"{name} of {model}{'' if given else ', which are those of its stages,'} has {len(layers)}"
            for name, model, given, layers in (
                ("student_layers", stage.model, term.student_layers, own),
                ("teacher_layers", stage.upstream[0].model, term.teacher_layers, theirs),
            )
        )
        raise InputError(f"methods: {term.method} compares layers in pairs; {both}; name as many of both")


def _check_head(stage: Stage, term: Term, shape: ImageShape, classes: int) -> None:
    """Raises InputError where a student's model can't end in its teacher's head."""
    if (teacher := stage.head_of) is None:
        return
    check_heads(stage.model, teacher.model, image_shape=shape, classes=classes)
    if term.needed != "maps":
        return
    for model, named in ((stage.model, term.student_layers), (teacher.model, term.teacher_layers)):
        if named and len(named) > 1:
            raise InputError(f"the last layer of {model} before its head is compared, and not {' and '.join(named)}")
        check_takes_means(model, shape, classes, named[0] if named else stages_in(model, shape, classes)[-1])


def _below(space: Space, dataset: Dataset) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of models that train in part, what enters that part, where it is all that comes from below."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    shape, classes = dataset.image_shape, len(dataset.classes)
    for own, role, section, model in _roles_of_cells(space):
        heads = [each for _, each in examples_of(section.recipe.get("head_epochs")) if each is not None]
        if section.pretrained is None or own.existing(role, model) or not heads:
            continue
        about = model, shape, classes, next(iter(_dropout_rates(section)), None)
        head, features = head_in(*about)
        below = found.setdefault(model, {})
        if head.whole:
            below[f"{BELOW}{HEAD}"] = features
        for _, first in examples_of(section.recipe.get("finetune_from")):
            if first is not None and (cut := cut_in(*about, first=str(first))):
                below[f"{BELOW}{first}"] = cut.shape
    return found


def _dropout_rates(section: Training) -> list[float | None]:
    return [None if each is None else float(each) for _, each in examples_of(section.recipe.get("dropout"))]


def _check_dropout(role: Role, section: Training, model: str, dataset: Dataset) -> None:
    """Raises InputError on a rate at which layers have other names, so that weights would not reach all of them."""
    if not (given := {rate for rate in _dropout_rates(section) if rate is not None}):
        return
    names = {}
    for rate in (None, *sorted(given)):
        with torch.device("meta"):
            names[rate] = set(without_head(build(model, dataset.image_shape, len(dataset.classes), rate)))
    if other := [rate for rate in sorted(given) if names[rate] != names[None]]:
        where = "assistants" if role == "assistant" else role
        raise InputError(
            f"{where}.recipe.dropout is {other[0]:g}: then layers of {model} have other names than in its pretrained "
            "weights, which would not reach them; leave it out, or give another rate"
        )


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
    """Every role with its section and each model it may have; of a size that is searched some, its ends among them."""
    yield from (("teacher", space.teacher, model) for model in space.teacher.models)
    for name in space.assistants.names:
        section = space.assistants.section(name)
        yield from (("assistant", section, model) for model in _models_of(space, name))
    yield "student", space.student, space.student.model


def _models_of(space: Space, name: str) -> list[str]:
    """The models that an assistant may have; of many sizes some, of which all that are built are checked as others."""
    varied = space.assistants.size(name)
    if varied is None:
        return [name]
    sizes = sorted(sizes_of(varied))
    some: set[Any] = {*sizes[:: -(-len(sizes) // BUILT_SIZES)], sizes[-1], first_of(f"{name}.size", varied)}
    return [_sized(space, name, size) for size in sorted(some)]


BUILT_SIZES = 16  # of a size that is searched: of all others it is asked whether the family has them


def _sized(space: Space, name: str, size: Any) -> str:
    return space.assistants.model(name, {f"{name}.size": size})


def _check_sizes(space: Space) -> None:
    """Raises InputError where a family has not all the sizes that the search may choose."""
    for name in space.assistants.names:
        varied = space.assistants.size(name)
        for size in sizes_of(varied) if varied else ():
            try:
                family_of(_sized(space, name, size))
            except InputError as error:
                raise InputError(
                    f"assistants.models: {name}: size may be {size}: {error}; a step or choices leave sizes out"
                ) from None


def with_weights(space: Space, dataset: Dataset, source: str, folder: StudyFolder) -> Space:
    """The space with the digests of its weights, pretrained and given, and FLOPs where it needs them; writes nothing.

    Where weights are gone from this machine, those that the study was started with will do if the root has them.
    """
    found: dict[Role, dict[str, str]] = {}
    for own, role, section, model in _roles_of_cells(space):
        try:
            content = _content(own, role, section, model, dataset)
            digest = sha256(content) if content is not None else None
        except MissingWeightsError as error:
            search = find_search(folder)
            digest = search.space.weights.get(role, {}).get(model) if search else None
            if digest is None or not folder.artifacts.has_pretrained(digest):
                raise InputError(f"{source}: {_named(own, role, model)}{error}") from None
        except InputError as error:
            raise InputError(f"{source}: {_named(own, role, model)}{error}") from None
        if digest is not None and found.setdefault(role, {}).setdefault(model, digest) != digest:
            raise InputError(
                f"{source}: factors: {role} {model} starts from other weights in one cell than in another; compare "
                "null and one of them, or make two studies"
            )
    other = transfer_data(space, dataset, source, folder)
    data = other.fingerprint.model_dump_json() if other else None
    whole = space.model_copy(update={"weights": found, "flops": flops_of(space, dataset), "transfer_data": data})
    whole = whole.model_copy(update={"inside": inside_of(whole, dataset)})
    return whole.model_copy(update={"loops": _loops(whole, dataset, folder)})


def _loops(space: Space, dataset: Dataset, folder: StudyFolder) -> tuple[str, ...]:
    """Decided once: a study that has begun keeps what was measured then."""
    if (search := find_search(folder)) is not None:
        return search.space.loops
    kinds = (stages for cell in space.cells for stages in stages_by_model(cell.space, dataset))
    return faster_in_loop(space, kinds, dataset, gpu_here(space, "student"))


def gpu_here(space: Space, role: Role) -> float:
    """What a rank of the role would get of this machine's GPUs, as `fitted` gives it."""
    own, here = space.resources_of(role), float(torch.cuda.device_count())
    unsaid = 0.0 if own.ranks else 0.25 if role == "student" else 1.0
    return min(here, 1.0, own.gpu if own.gpu is not None else unsaid)


def transfer_data(space: Space, dataset: Dataset, source: str, folder: StudyFolder | None) -> Dataset | None:
    """The data set whose training images students are taught on; raises InputError where that can't be."""
    found: dict[str, Dataset] = {}
    for cell in space.cells:
        if (own := cell.space.transfer) is None:
            continue
        if cell.space.teacher.logits is not None:
            raise InputError(f"{source}: transfer: of the teacher logits alone are given, and none on other images")
        try:
            other = _dataset(own.dataset, folder)
            if own.examples is not None:
                any_examples(other.sizes["train"] + dataset.sizes["train"] * bool(own.with_own), own.examples, 0)
        except InputError as error:
            raise InputError(f"{source}: transfer: {error}") from None
        if other.image_shape != dataset.image_shape:
            theirs, ours = ("x".join(map(str, each.image_shape)) for each in (other, dataset))
            raise InputError(
                f"{source}: transfer.dataset is {own.dataset}, whose images have {theirs} (channels, height, width); "
                f"those of {dataset.name} have {ours}"
            )
        found[own.dataset] = other
    return next(iter(found.values()), None)


def flops_of(space: Space, dataset: Dataset) -> dict[str, int]:
    """Of one image by model, where an arm costs as much as another; raises InputError on a model that can't be."""
    found: dict[str, int] = {}
    if any(arm.costs_as for arm in space.all_arms):
        for own, role, _, model in _roles_of_cells(space):
            if model not in found and own.existing(role, model) is None:
                try:
                    found[model] = size_of(model, dataset.image_shape, len(dataset.classes)).flops
                except InputError as error:
                    raise InputError(f"{role}: {error}") from None
    return found


def _named(space: Space, role: Role, model: str) -> str:
    """Before an error of a file that is given: whose it is."""
    return f"{role}: " if space.existing(role, model) else ""


def _check_augmentation(role: str, section: Training, dataset: Dataset) -> None:
    channels, height, width = dataset.image_shape
    for place, augment in examples_of(section.recipe.get("augment")):
        parts = str(augment).split("+")
        if "flip-rotate" in parts and height != width:
            raise InputError(
                f"{role}recipe.augment{place} is {augment}, which turns squares; images of {dataset.name} are "
                f"{width} x {height}; crop-flip takes any"
            )
        if "stain-jitter" in parts and channels != 3:
            raise InputError(
                f"{role}recipe.augment{place} is {augment}, and stains have colours; images of {dataset.name} have "
                f"{channels} channel{'s' * (channels > 1)}"
            )


def _check_transfer_sets(role: str, section: Training, dataset: Dataset) -> None:
    for place, examples in examples_of(section.recipe.get("examples")):
        if examples is not None:
            try:
                transfer_set(dataset.train.labels, int(examples), seed=0)
            except InputError as error:
                raise InputError(f"{role}{error}".replace("examples is", f"examples{place} is")) from None


def stages_by_model(space: Space, dataset: Dataset) -> list[list[Stage]]:
    """The stages of each model in each role that cost the same, with every teacher and the first of all else.

    Of the confirm phase, what its students learn from: where the path has fresh seeds too, these are other stages.
    """
    found: dict[tuple[Role, str, int, int, str], dict[str, Stage]] = {}
    for cell, arm in itertools.product(space.cells, space.all_arms):
        for stage in first_stages(cell.space, arm, dataset):
            alike = (stage.role, stage.model, stage.recipe.examples or 0, stage.recipe.epochs, stage.methods)
            found.setdefault(alike, {})[stage.key] = stage
    return [list(found[each].values()) for each in sorted(found, key=lambda each: ROLES.index(each[0]))]


def first_stages(space: Space, arm: Arm, dataset: Dataset, confirming: bool = True) -> Iterator[Stage]:
    """Of an arm in one cell, with every teacher and the first of what else is varied; each path's student is last."""
    varied = space.varied(arm)
    first = {name: first_of(name, value) for name, value in varied.items()}
    for _, teacher in varied["teacher.model"].examples() if "teacher.model" in varied else [("", None)]:
        chosen = first | ({"teacher.model": teacher} if teacher else {})
        [path] = space.paths(Configuration(arm, chosen), dataset.fingerprint, [0])
        yield from path.stages
    for path in space.confirming_paths(Configuration(arm, first), dataset.fingerprint) if confirming else ():
        yield from path.stages[:-1]


def _odd_sizes(space: Space, dataset: Dataset) -> Iterator[str]:
    def parameters(model: str) -> int:
        return parameters_of(model, dataset.image_shape, len(dataset.classes))

    def named(name: str) -> tuple[str, str]:
        """The smallest and the largest model that an assistant may have."""
        models = _models_of(space, name)
        return min(models, key=parameters), max(models, key=parameters)

    def known(name: str) -> bool:  # of logits no size is
        existing = space.assistants.existing(name)
        return existing is None or existing.logits is None

    student = parameters(space.student.model)
    teacher = min((model for model in space.teacher.models if model != LOGITS), key=parameters, default=None)
    for name in filter(known, space.assistants.names):
        smallest, largest = named(name)
        if teacher and parameters(largest) >= parameters(teacher):
            yield f"assistants.models: {_may_be(name, largest)} no smaller than the teacher {teacher}"
        if parameters(smallest) <= student:
            yield f"assistants.models: {_may_be(name, smallest)} no larger than the student {space.student.model}"
    for arm in space.all_arms:
        for before, after in itertools.pairwise((arm.costs_as or arm).assistants):
            if known(before) and known(after):
                smaller, larger = named(before)[0], named(after)[1]
                if parameters(larger) >= parameters(smaller):
                    at = f" where that is {smaller}" if smaller != before else ""
                    who = _may_be(after, larger)
                    yield f"arms: {arm.name} grows: {who} no smaller than {before}{at}, which teaches it"


def _may_be(name: str, model: str) -> str:
    return f"{name} is" if name == model else f"{name} may be {model}, which is"
