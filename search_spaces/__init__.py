"""What may be varied: spaces, arms, stages, paths and their keys. Pure Python: no torch, no Ray."""

from takd.search_spaces.arms import Arm, parse_arm
from takd.search_spaces.errors import InputError
from takd.search_spaces.loading import load_space, presets, space_from
from takd.search_spaces.sections import Training
from takd.search_spaces.space import Configuration, Space
from takd.search_spaces.stage import (
    ROLES,
    TRAINING_REVISION,
    WIDEST,
    DatasetFingerprint,
    Loss,
    Path,
    Recipe,
    Role,
    Stage,
    key_of,
)
from takd.search_spaces.varied import examples_of

__all__ = [
    "ROLES",
    "TRAINING_REVISION",
    "WIDEST",
    "Arm",
    "Configuration",
    "DatasetFingerprint",
    "InputError",
    "Loss",
    "Path",
    "Recipe",
    "Role",
    "Space",
    "Stage",
    "Training",
    "examples_of",
    "key_of",
    "load_space",
    "parse_arm",
    "presets",
    "space_from",
]
