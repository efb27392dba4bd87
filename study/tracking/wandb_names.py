"""What W&B takes: its variables are checked before a study starts, and what is made of long names is shortened."""

import hashlib
import os
import re
from urllib.parse import urlsplit

from takd.search_spaces import InputError
from takd.study.options import Mode

LONGEST_TAG, LONGEST_NAME = 64, 128  # characters
NOT_IN_PROJECTS = "/\\#?%:"
MODES: dict[str, Mode] = {  # by what WANDB_MODE may say; W&B has two words more for the first two
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def check_variables(asked: Mode | None) -> None:
    """Raises InputError that names the variable which W&B would not take; `asked` is what --wandb says."""
    mode = os.environ.get("WANDB_MODE", "")
    if (asked or MODES.get(mode)) == "disabled":
        return
    if mode and mode not in MODES:
        raise InputError(f"WANDB_MODE is {mode!r}; expected online, offline or disabled, or leave it unset")
    project = os.environ.get("WANDB_PROJECT", "")
    if set(project) & set(NOT_IN_PROJECTS) or len(project) > LONGEST_NAME:
        none_of = " ".join(NOT_IN_PROJECTS)
        raise InputError(f"WANDB_PROJECT is {project!r}; expected at most {LONGEST_NAME} characters, none of {none_of}")
    entity = os.environ.get("WANDB_ENTITY", "")
    if entity and not re.fullmatch(r"[\w.-]+", entity):
        raise InputError(f"WANDB_ENTITY is {entity!r}; expected the name of a user or a team, such as my-team")
    server = os.environ.get("WANDB_BASE_URL", "")
    if server and (urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).netloc):
        raise InputError(
            f"WANDB_BASE_URL is {server!r}; expected the address of a server, such as https://api.wandb.ai"
        )


def shortened(text: str, longest: int) -> str:
    """At most so many characters; what is left out is in a digest, so that two texts stay two."""
    if len(text) <= longest:
        return text
    return f"{text[: longest - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def artifact_name(text: str, key: str) -> str:
    """Of letters, digits, dashes, dots and underscores, with the beginning of a stage's key at its end."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', text)[: LONGEST_NAME - 9]}-{key[:8]}"
