"""`takd sync` uploads a study's W&B runs, `takd watch` shows them in W&B's own terminal view."""

import os
import subprocess
import sys

from rich.console import Console

from takd.search_spaces import InputError
from takd.study.folder import StudyFolder
from takd.study.results import write_results
from takd.study.search.optimization import open_search
from takd.study.tracking.uploading import Upload, batches, unsynced
from takd.study.tracking.wandb_names import check_variables
from takd.study.tracking.wandb_study import complete_runs


def sync_study(folder: StudyFolder, console: Console) -> str | None:
    """Completes the runs from the study's storage and sends those that W&B lacks; returns what went wrong, in a line.

    Run again, it goes on where it was. Raises InputError where there is no study or no key.
    """
    check_variables("online")
    search = open_search(folder)
    write_results(folder, search)
    complete_runs(folder, search)
    files = unsynced(folder.local)
    if not files:
        console.print("W&B has all runs")
        return None
    sent = 0
    for batch in batches(files):
        upload = Upload(folder.local, batch)
        try:
            failure = upload.wait()
        finally:
            upload.kill()
        if failure and "API key" in failure:
            raise InputError(f"W&B: {failure}; a key comes from WANDB_API_KEY or `wandb login`")
        if failure:
            return f"{failure} ({len(files) - len(unsynced(folder.local))} of {len(files)} runs sent)"
        sent += len(batch)
        console.print(f"{sent} of {len(files)} runs sent")
    return None


def watch_study(folder: StudyFolder) -> int:
    """Shows the local runs until the user leaves; returns W&B's exit code. Raises InputError where there are none."""
    runs = folder.local / "wandb"
    if not any(runs.glob("*run-*/*.wandb")):
        raise InputError(f"study {folder.name}: no W&B runs in {runs}; `takd run --wandb offline` writes some")
    environment = os.environ | {"WANDB_DIR": str(folder.local)}
    return subprocess.call([sys.executable, "-m", "wandb", "leet", str(runs)], env=environment)
