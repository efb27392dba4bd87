"""Studies of knowledge distillation with teacher assistants, on Ray Tune, Optuna and PyTorch; it loads none of them."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`__version__`, looked up when somebody asks: Ray's workers have the code without its installation."""
    if name == "__version__":
        from importlib.metadata import version

        return version("takd")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
