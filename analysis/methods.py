"""The methods paragraph of a paper, as a study's space and tables have it: what was trained, chosen, measured, and how.

Everything in it is read from these, so that it says what ran.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from takd.analysis.tables import confirmed, ends_in_anothers_head, students
from takd.search_spaces import Recipe, Space, Training, examples_of, some
from takd.search_spaces.methods import KD, METHODS, WEIGHT, reuses_head
from takd.search_spaces.metrics import METRICS
from takd.search_spaces.stage import in_use

NOT_READ = "This version of takd can't read the study's space.yaml, so there is no methods paragraph."
NAMED = 20  # of a list
_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "nadam": "NAdam", "radam": "RAdam"}
_OPTIMIZERS |= {"adamax": "Adamax", "adagrad": "Adagrad", "adadelta": "Adadelta"}
_SAMPLERS = {"tpe": "Optuna's TPE sampler", "random": "random search"}


def methods(space: Space | None, trials: pd.DataFrame, images: Mapping[str, int]) -> str:
    """One paragraph. `trials` are the study's rows; `images` are the data set's by split, empty where not known."""
    if space is None:
        return NOT_READ
    parts = (_data, _models, _training, _loss, _arms, _search, _confirm)
    return " ".join(sentence for part in parts for sentence in part(space, trials, images) if sentence)


Sentences = Iterator[str]


def _data(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    names = {"train": "training", "validation": "validation", "test": "test"}
    sizes = [f"{images[split]:,} {name}" for split, name in names.items() if split in images]
    yield f"We used the data set {space.dataset}" + (f" ({_and(sizes)} images)." if sizes else ".")


def _models(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    known = trials[~_projecting(trials)].dropna(subset=["parameters"]).groupby("model")["parameters"].max()

    def sized(models: Any) -> list[str]:
        return [f"{each} ({known[each]:,.0f} parameters)" if each in known else str(each) for each in models]

    factors = _factors(space)
    teachers = factors.get("teacher.model", space.teacher.models)
    pupils = factors.get("student.model", (space.student.model,))
    yield f"The {_plural('teacher', teachers)} {_and(sized(teachers))}."
    if names := space.assistants.names:
        searched = {name: _told(size) for name in names if (size := space.assistants.size(name))}
        listed = [
            f"{name}, whose size was {searched[name]}," if name in searched else sized([name])[0] for name in names
        ]
        yield f"The {_plural('teacher assistant', names)} {_and(listed).removesuffix(',')}."
    yield f"The {_plural('student', pupils)} {_and(sized(pupils))}."
    if factors:
        compared = "; ".join(f"{name} ({_and([*map(_number, values)])})" for name, values in factors.items())
        yield (
            f"Factors that were compared and not optimised were {compared}: in each of the "
            f"{_cells(factors)} cells every arm was searched, chosen and confirmed by itself."
        )


def _plural(role: str, models: Any) -> str:
    return f"{role} was" if len(models) == 1 else f"{role}s were"


def _factors(space: Space) -> dict[str, tuple[Any, ...]]:
    given = getattr(space, "factors", None) or {}
    given = given if isinstance(given, Mapping) else given.model_dump(by_alias=True)
    return {name: tuple(values) for name, values in given.items() if values}


def _cells(factors: Mapping[str, tuple[Any, ...]]) -> int:
    count = 1
    for values in factors.values():
        count *= len(values)
    return count


def _training(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    """Recipes, those that are alike in one sentence; and what was given."""
    existing = [name for name in space.assistants.names if space.assistants.existing(name)]
    sections: dict[str, Training] = {} if space.teacher.exists else {"the teacher": space.teacher}
    names = space.assistants.trained
    own: dict[str, Training] = {
        f"the assistant {name}": space.assistants.section(name) for name in names if space.assistants.own(name)
    }
    if len(own) < len(names):
        sections["assistants"] = space.assistants
    sections |= own
    by_recipe: dict[str, list[str]] = {}
    for who, section in (sections | {"students": space.student}).items():
        by_recipe.setdefault(_recipe(section, space), []).append(who)
    for recipe, trained in by_recipe.items():
        named = _and(trained)
        were = "was" if len(trained) == 1 and trained[0].startswith("the ") else "were"
        yield f"{named[0].upper()}{named[1:]} {were} trained for {recipe}."
    if space.teacher.exists:
        yield f"The teacher was given, as a {space.teacher.kind} file, and not trained here."
    if existing:
        were = "was" if len(existing) == 1 else "were"
        yield f"Of the assistants {_and(existing)} {were} given and not trained here."


def _recipe(section: Training, space: Space) -> str:
    """`60 epochs in batches of 256 with Adam (...)`, and what is unusual."""
    first = {name: next(iter(examples_of(value)))[1] for name, value in section.recipe.items()}
    plain = Recipe.model_validate(in_use(first)).model_dump()

    def told(name: str) -> str:
        return _told(section.recipe[name] if name in section.recipe else plain[name])

    optimizer = told("optimizer")
    about = [f"learning rate {told('learning_rate')}", f"{told('schedule')} schedule"]
    about += [f"momentum {told('momentum')}"] if plain["momentum"] is not None else []
    about += [f"weight decay {told('weight_decay')}"] if plain["weight_decay"] or "weight_decay" in first else []
    text = (
        f"{told('epochs')} epochs in batches of {told('batch_size')} with {_OPTIMIZERS.get(optimizer, optimizer)} "
        f"({', '.join(about)})"
    )
    said = {
        "examples": "on a class-balanced transfer set of {} training images",
        "dropout": "dropout {}",
        "label_smoothing": "label smoothing {}",
        "augment": "augmentation {}",
        "nesterov": "Nesterov's momentum",
        "decay_norm_and_bias": "no decay of biases and normalisation",
        "warmup_epochs": "a warm-up of {} epochs",
        "clip_norm": "gradients clipped at a norm of {}",
        "ema": "an exponential moving average of the weights (decay {})",
        "patience": "ended after {} looks at the validation images without a better one",
        "class_weights": "class weights {}",
        "head_epochs": "the first {} epochs on the last layer alone",
        "finetune_from": "then all layers from {} on",
        "precision": "precision {}",
    }
    extra = [text.format(told(name)) for name, text in said.items() if plain.get(name) not in (None, "float32")]
    extra += [f"starting from the weights {section.pretrained}"] if section.pretrained else []
    own = str(plain["select_by"] or space.metric)
    by = space.goes_by.title if own == space.metric else METRICS[own].title if own in METRICS else own
    selected = f"the epoch with the best validation {by}" if plain["select"] == "best" else "the last epoch"
    return f"{', '.join([text, *extra])}, and the weights of {selected} were kept"


def _told(value: Any) -> str:
    """A fixed value, or among what it was varied."""
    if hasattr(value, "choices"):
        return f"one of {_and([*map(_number, value.choices)], 'or')}"
    if hasattr(value, "low"):
        scale = " on a logarithmic scale" if value.log else f" in steps of {_number(value.step)}" if value.step else ""
        return f"between {_number(value.low)} and {_number(value.high)}{scale}"
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _loss(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    if not any(arm.distilled for arm in space.all_arms):
        return
    form = {"convex": "(1 - lambda) CE + lambda T^2 KL", "additive": "CE + lambda T^2 KL"}[space.loss.form]
    of = {"batchmean": "summed over classes", "mean": "averaged over classes"}[space.loss.kl_reduction]
    yield (
        f"Models that learn from soft targets minimised {form}, with the cross-entropy CE with the labels and the "
        f"Kullback-Leibler divergence KL ({of}) of the distributions softened at temperature T."
    )
    unusual = {
        "KL was replaced by the decoupled divergence of Zhao et al. 2022": space.loss.divergence,
        "logits were standardised before they were softened (Sun et al. 2024)": space.loss.standardize,
    }
    named = dict.fromkeys(name for arm in space.all_arms for name in sorted(arm.methods) if name != KD)
    alone = [name for name in named if reuses_head(name)]
    if alone:
        yield (
            f"Students of {_and([f'{name} ({METHODS[name].source})' for name in alone])} ended in a projector and "
            "their teacher's head, and minimised the squared distance of what they projected from what enters that "
            f"head in their teacher, and nothing else.{_with_projectors(trials)}"
        )
    if space.transfer is not None:
        own = ", and those of this data set" if space.transfer.with_own else ""
        yield (
            f"Students that somebody taught saw the training images of {space.transfer.dataset}{own}, and none of the "
            "labels."
        )
    others = [name for name in named if name not in alone]
    if others:
        known = [f"{name} ({METHODS[name].source})" if name in METHODS else name for name in others]
        yield (
            f"Arms of other methods minimised the cross-entropy and the weighted loss of the method: {_and(known)}. "
            f"{_weights(space, others)}"
        )
    for text, there in unusual.items():
        if there:
            yield f"{text[0].upper()}{text[1:]}."
    yield f"For students T was {_told(space.student.temperature)} and lambda {_told(space.student.lambda_)}"
    if any(arm.assistants for arm in space.all_arms):
        said = dict.fromkeys(
            (_told(section.temperature), _told(section.lambda_))
            for section in map(space.assistants.section, space.assistants.trained)
        )
        told = " or ".join(f"T {temperature}, lambda {weight}" for temperature, weight in said)
        yield f"(assistants: {told})." if told else "throughout."
    else:
        yield "throughout."


def _projecting(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are of students that end in a projector and another's head."""
    return (trials["role"] == "student") & trials["arm"].map(ends_in_anothers_head).astype(bool)


def _with_projectors(trials: pd.DataFrame) -> str:
    """How large students are with these, from the smallest to the largest."""
    sizes = sorted(set(trials[_projecting(trials)]["parameters"].dropna().astype(int)))
    return f" With these they have {_and([f'{each:,}' for each in sizes])} parameters." if sizes else ""


def _weights(space: Space, methods: list[str]) -> str:
    """Of which of these methods the weight was searched; all others have a fixed one."""
    varied = {
        name.partition(".")[0]
        for cell in space.cells
        for arm in cell.space.all_arms
        for name in cell.space.varied(arm)
        if name.endswith(f".{WEIGHT}")
    }
    searched = [each for each in methods if each in varied]
    if not searched or searched == methods:
        return f"Weights were {'searched' if searched else 'fixed'}."
    fixed = [each for each in methods if each not in searched]
    return f"The weights of {_and(searched)} were searched; those of {_and(fixed)} were fixed."


def _arms(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    names = [arm.name for arm in space.all_arms]
    yield f"We compared {len(names)} arms: {some(names, NAMED)}."


def _search(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    done = students(trials)
    each = f"with {space.seeds} student seeds each" if space.seeds > 1 else "with one student seed each"
    if space.sampler == "grid":
        how = f"All {space.budget:,} configurations of a grid were tried"
    else:
        how = f"{space.budget:,} configurations were chosen by {_SAMPLERS[space.sampler]} (seed {space.sampler_seed})"
    ended = ""
    if space.asha:
        ended = "Asynchronous successive halving (Li et al. 2020) ended weak students early."
    yield (
        f"{how}, {each} ({len(done):,} students in all), and each arm's best was chosen by mean validation "
        f"{space.goes_by.title}."
    )
    yield ended


def _confirm(space: Space, trials: pd.DataFrame, images: Mapping[str, int]) -> Sentences:
    final = confirmed(trials)
    if space.confirm is None or not len(final):
        why = "There was no confirm phase" if space.confirm is None else "The confirm phase has not ended"
        yield f"{why}, so all accuracies are validation accuracies of the search."
        return
    paths = getattr(space.confirm, "paths", None)
    if paths:
        yield (
            f"Then each arm's choice was trained again on {paths} whole paths, each with "
            f"{_and([*space.cells[0].space.redrawn])} drawn anew, with {_count(space.confirm.seeds, 'student')} a "
            "path; paths were the same for all arms."
        )
    else:
        again = "with teacher and assistants trained anew for each" if space.confirm.reseed_path else (
            "with the teacher and the assistants of the search"
        )  # fmt: skip
        yield (
            f"Then each arm's choice was trained again from {_count(space.confirm.seeds, 'fresh seed')}, the same ones "
            f"for all arms, {again}."
        )
    yield "The test split was read once, after that."


def _count(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"


def _and(names: list[str], word: str = "and") -> str:
    if len(names) > NAMED:
        return some(names, NAMED)
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
