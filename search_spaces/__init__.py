"""What may be varied: spaces, arms, stages, paths and their keys. Pure Python: no torch, no Ray."""

from takd.search_spaces.arms import Arm, is_called, parse_arm
from takd.search_spaces.augments import ALTERING, MIXING, LeftName, NamedView, ViewName
from takd.search_spaces.derived import Derived, Left, What, derived_of, learned_by, names_of, needed_by, soft_targets_of
from takd.search_spaces.errors import InputError
from takd.search_spaces.loading import load_space, presets, space_from, without_code
from takd.search_spaces.sections import Existing, Training
from takd.search_spaces.space import Configuration, Space
from takd.search_spaces.stage import (
    ROLES,
    TRAINING_REVISION,
    WIDEST,
    DatasetFingerprint,
    Given,
    Loss,
    Path,
    Recipe,
    Role,
    SearchMetric,
    Stage,
    Term,
    key_of,
)
from takd.search_spaces.varied import distinct, examples_of, first_of, one_number, sizes_of
from takd.search_spaces.words import some

__all__ = [
    "ALTERING",
    "MIXING",
    "ROLES",
    "TRAINING_REVISION",
    "WIDEST",
    "Arm",
    "Configuration",
    "DatasetFingerprint",
    "Derived",
    "Existing",
    "Given",
    "InputError",
    "Left",
    "LeftName",
    "Loss",
    "NamedView",
    "Path",
    "Recipe",
    "Role",
    "SearchMetric",
    "Space",
    "Stage",
    "Term",
    "Training",
    "ViewName",
    "What",
    "derived_of",
    "distinct",
    "examples_of",
    "first_of",
    "is_called",
    "key_of",
    "learned_by",
    "load_space",
    "names_of",
    "needed_by",
    "one_number",
    "parse_arm",
    "presets",
    "sizes_of",
    "soft_targets_of",
    "some",
    "space_from",
    "without_code",
]
