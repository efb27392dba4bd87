"""What a space may say of methods, by the facts of takd's own: checked, and completed by what is published."""

from collections.abc import Mapping
from typing import Any

from takd.search_spaces.methods import (
    DKD,
    FORM,
    KD,
    LAYERS,
    METHODS,
    SOFTENED,
    TEMPERATURE,
    WARMUP,
    WEIGHT,
    Param,
)
from takd.search_spaces.registry import PAGE, nearest
from takd.search_spaces.stage import Loss, Term
from takd.search_spaces.values import may_be_own, shown
from takd.search_spaces.varied import Range, examples_of, refuse_list


def keys_of(name: str) -> tuple[str, ...]:
    """What a space may say of a method of takd's."""
    facts = METHODS[name]
    if name == KD:
        return ()
    own = [WEIGHT, *facts.params, *([TEMPERATURE] if facts.temperature else []), WARMUP]
    own = [] if facts.reuses_head else own  # alone it weighs what the learning rate says
    own += [FORM] if name == DKD else []
    return (*own, *(LAYERS if facts.needs == "maps" else ()))


def published(name: str) -> dict[str, Any]:
    """What a method has that a space says nothing of, by key; of a user's what its decorator leaves to others."""
    if name not in METHODS:
        return {WEIGHT: 1.0}
    facts = METHODS[name]
    if name == KD or facts.reuses_head:
        return {}
    low, high = facts.search
    own: dict[str, Any] = {WEIGHT: Range(low=low, high=high, log=True)}
    own |= {key: param.default for key, param in facts.params.items()}
    own |= {TEMPERATURE: facts.temperature} if facts.temperature else {}
    own |= {WARMUP: facts.warmup} if facts.warmup else {}
    return own | ({FORM: "additive"} if name == DKD else {})


def check_name(name: str) -> None:
    """Raises ValueError on a method that nobody can have."""
    if name not in METHODS and not may_be_own(name):
        raise ValueError(
            f"{name!r} is no method; {nearest(name, [*METHODS])}valid: {', '.join(METHODS)}; {PAGE} says how to bring "
            "one of your own"
        )


def check_section(name: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError where a space says of a method what it has not, or what can't be."""
    check_name(name)
    if name == KD and given:
        raise ValueError(f"{KD}: its temperature and lambda are those of student, its other values those of loss")
    for key, value in given.items():
        if name in METHODS and key not in keys_of(name):
            others = [each for each in METHODS if key in METHODS[each].params]
            whose = f", which is a parameter of {' and '.join(others)}" if others else ""
            valid = ", ".join(keys_of(name)) or "nothing: it is all that its student learns by"
            raise ValueError(f"{name} has no {key}{whose}; valid: {valid}")
        _check_value(name, key, value)
    if given.get(FORM) == "convex":
        for where, each in examples_of(given.get(WEIGHT, 1.0)):
            if each > 1:
                raise ValueError(f"{name}.weight{where} is {shown(each)}; with form: convex it is in [0, 1]")


def _check_value(name: str, key: str, value: Any) -> None:
    place = f"{name}.{key}"
    if key == FORM:
        if value not in ("convex", "additive"):
            raise ValueError(f"{place} is {shown(value)}; expected 'convex' or 'additive'")
        return
    if key in LAYERS:
        if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{place} is {shown(value)}; expected a list of layers by their names in the model")
        return
    refuse_list(place, value)
    limits = METHODS[name].params.get(key) if name in METHODS else None
    for where, each in examples_of(value):
        if key == WARMUP and each is None:
            continue
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise ValueError(f"{place}{where} is {shown(each)}; expected a number")
        if (wrong := _limit(key, limits, each)) is not None:
            raise ValueError(f"{place}{where} is {shown(each)}; expected {wrong}")
    if limits and limits.whole and isinstance(value, Range):
        raise ValueError(f"{place} is a whole number; name the ones to try: {{choices: [...]}}")


def _limit(key: str, param: Param | None, value: float) -> str | None:
    """What a value must be that it is not."""
    if key == WARMUP and not 0 <= value <= 1:
        return "a part of the run, between 0 and 1"
    if key == TEMPERATURE and value <= 0:
        return "a number above 0"
    if key == WEIGHT and value < 0:
        return "a number of at least 0"
    return param.wrong(value) if param else None


def completed(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All values of a method by key: fixed, or to be searched."""
    own = published(name)
    if given.get(FORM) == "convex":
        own[WEIGHT] = Range(low=0.1, high=0.95)
    return own | dict(given)


def as_published(name: str) -> dict[str, Any]:
    """All values of a method as published, none of them searched."""
    return published(name) | ({WEIGHT: METHODS[name].weight} if name in METHODS and name != KD else {})


def taught(
    methods: Mapping[str, Mapping[str, Any]], standardized: bool, loss: Loss
) -> tuple[Loss | None, tuple[Term, ...]]:
    """What a stage says of the methods that teach it, each with its values: the loss of soft targets, and the others.

    `loss` is the space's; what is returned is None where neither `kd` nor `dkd` is among them.
    """
    terms = tuple(_term(name, methods[name]) for name in sorted(methods) if name not in SOFTENED)
    if not methods.keys() & set(SOFTENED):
        return None, terms
    own = loss.model_dump() | ({"standardize": True} if standardized else {})
    if DKD in methods:
        values = methods[DKD]
        own |= {"divergence": "decoupled", **{key: values[key] for key in (FORM, *METHODS[DKD].params)}}
        own |= {"warmup": values.get(WARMUP)}
    return Loss.model_validate(own), terms


def _term(name: str, values: Mapping[str, Any]) -> Term:
    apart = (WEIGHT, TEMPERATURE, WARMUP, *LAYERS)
    params = {key: float(each) for key, each in values.items() if key not in apart}
    layers = {key: tuple(each) for key, each in values.items() if key in LAYERS}
    own = {key: float(values[key]) for key in (WEIGHT, TEMPERATURE, WARMUP) if values.get(key) is not None}
    return Term.model_validate({"method": name, "params": params, **own, **layers})
