"""What may be varied: spaces, arms, stages, paths and their keys. Pure Python: no torch, no Ray."""

from takd.search_spaces.arms import Arm, is_called, parse_arm
from takd.search_spaces.derived import Derived, soft_targets_of
from takd.search_spaces.errors import InputError
from takd.search_spaces.loading import load_space, presets, space_from
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
    ViewName,
    key_of,
)
from takd.search_spaces.varied import distinct, examples_of, first_of, one_number, sizes_of
from takd.search_spaces.words import some

__all__ = [
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
    "Loss",
    "Path",
    "Recipe",
    "Role",
    "SearchMetric",
    "Space",
    "Stage",
    "Training",
    "ViewName",
    "distinct",
    "examples_of",
    "first_of",
    "is_called",
    "key_of",
    "load_space",
    "one_number",
    "parse_arm",
    "presets",
    "sizes_of",
    "soft_targets_of",
    "some",
    "space_from",
]
