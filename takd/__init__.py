"""Studies of knowledge distillation with teacher assistants, on Ray Tune, Optuna and PyTorch; it loads none of them.

For notebooks and scripts: load a space, run a study or open one, look at its tables and models. docs/api.md shows how.
For a file that a space names as its `code`: decorators such as `model_family`; docs/own-code.md has them.
What is named here is imported when somebody asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from takd.search_spaces import InputError, Space, Stage, load_space
    from takd.search_spaces.methods import Param
    from takd.search_spaces.registry import augmentation, method, metric, model_family, optimizer, schedule
    from takd.study.stopping import Stop, StoppedError
    from takd.study.study import Study, open_study, run
    from takd.trainables.datasets.built_in import dataset

    __version__: str

__all__ = [
    "InputError",
    "Param",
    "Space",
    "Stage",
    "Stop",
    "StoppedError",
    "Study",
    "__version__",
    "augmentation",
    "dataset",
    "load_space",
    "method",
    "metric",
    "model_family",
    "open_study",
    "optimizer",
    "run",
    "schedule",
]

_WHERE = {
    "InputError": "takd.search_spaces",
    "Param": "takd.search_spaces.methods",
    "Space": "takd.search_spaces",
    "Stage": "takd.search_spaces",
    "Stop": "takd.study.stopping",
    "StoppedError": "takd.study.stopping",
    "Study": "takd.study.study",
    "dataset": "takd.trainables.datasets.built_in",
    "load_space": "takd.search_spaces",
    "open_study": "takd.study.study",
    "run": "takd.study.study",
    **dict.fromkeys(
        ("augmentation", "method", "metric", "model_family", "optimizer", "schedule"), "takd.search_spaces.registry"
    ),
}

if not TYPE_CHECKING:  # a checker would take any name for one that there is

    def __getattr__(name: str) -> Any:
        """Ray's workers have the code without its installation: the version too is looked up when somebody asks."""
        if name == "__version__":
            from importlib.metadata import version

            return version("takd")
        if name in _WHERE:
            return getattr(import_module(_WHERE[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For who completes names: also what nobody has asked for yet."""
    return __all__
