"""A study as an object: run or opened, with its tables, its stages, and what its stages left."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from takd.search_spaces import InputError, NamedView, Space, Stage, ViewName, load_space
from takd.search_spaces.augments import view_number
from takd.search_spaces.registry import check_digests
from takd.study.apart import begin
from takd.study.folder import StudyFolder, study_folder
from takd.study.options import CHECK, Mode, RunOptions
from takd.study.stopping import Stop, StoppedError, interrupt, stopped_by_signals
from takd.study.tracking.progress import text_console
from takd.trainables.own_code import NO_CODE, Code, read_code, use

# Not loaded here: pandas, Optuna and the rest take seconds, in which a run's check is under way already.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rich.console import Console
    from torch import nn

    from takd.study.results import Tables
    from takd.study.search.graph import Description
    from takd.study.search.optimization import Search
    from takd.trainables.datasets.dataset import Dataset

T = TypeVar("T")


def run(
    space: Space,
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    storage: str | None = None,
    trials: int | None = None,
    slots: int | None = None,
    address: str | None = None,
    wandb: Mode | None = None,
    tensorboard: bool = False,
    profile: bool = False,
    console: Console | None = None,
    stop: Stop | None = None,
    source: str | None = None,
) -> Study:
    """Runs a study to its end, or goes on with one that was begun, and returns it.

    What is finished below the root is not trained again; more `trials` than before extend a study. Progress is printed
    to the console: as lines, or on a terminal as a table that is kept up to date.

    Ctrl-C or a notebook's interrupt, and SIGTERM, end a run that is in the main thread: stages in training write a
    checkpoint, then KeyboardInterrupt is raised, and the next run goes on there. A second one doesn't wait for the
    checkpoints. In another thread a run is ended by `stop.request(reason)` alone.

    Ray is started in this process and stays, for the next run; `ray.shutdown()` ends it. Where one runs already it is
    used, whatever `slots` says, with a warning.

    Args:
        space: What is tried; see `load_space`.
        name: Of the study, a folder below the root.
        root: A folder, or a URI s3://... or gs://..., of studies and their artifacts (default: TAKD_ROOT, else `runs`).
        storage: URL of Optuna's database (default: TAKD_STORAGE, else a journal file in the study's folder).
        trials: Configurations to try, in place of the space's.
        slots: CPU slots of a Ray that is started here (default: every core).
        address: Of a running Ray cluster in place of one here: "auto", or HOST:PORT.
        wandb: Where runs are logged to (default: WANDB_MODE, else online where a key is found, else offline).
        tensorboard: TensorBoard's event files in the study's folder as well.
        profile: Prints where the time went.
        console: Of rich (default: standard output).
        stop: Asks the run to end early, from any thread. Who gives one handles signals himself.
        source: What errors call the space (default: `space NAME`).

    Raises:
        InputError: Space, name, root or storage can't be, or the study exists with another space, or runs elsewhere.
        KeyboardInterrupt: The run was interrupted.
        StoppedError: It ended early for another reason.
    """
    options = RunOptions(wandb, slots, address, tensorboard, profile)
    folder = study_folder(root, name, storage)
    if trials is not None:
        space = load_space(space, {"trials": trials})
    source = source or f"space {name}"
    checking = begin(CHECK, space, source, folder)
    from takd.study.run import run_study

    given = folder, space, source, options, console or text_console()
    if stop is None:
        stop = Stop()
        with stopped_by_signals(stop, again=interrupt):
            result = run_study(*given, stop, checking)
    else:
        result = run_study(*given, stop, checking)
    if stop.requested:
        raise KeyboardInterrupt(stop.reason) if stop.interrupted else StoppedError(stop.reason)
    return Study(folder, search=result.search, tables=result.tables, trained=result.trained, code=result.code)


def open_study(
    name: str,
    root: str | os.PathLike[str] | None = None,
    storage: str | None = None,
    code: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> Study:
    """A study that was begun, as it is now; also while another process runs it. Changes nothing.

    Root and storage are as in `run`. `code`: the files that the study's space names as its code, without which models
    of a family in them can't be made. Raises InputError where there is no such study, or no such code.
    """
    places = [code] if isinstance(code, str | os.PathLike) else code
    read = read_code([os.path.abspath(os.path.expanduser(each)) for each in places])
    return Study(study_folder(root, name, storage), code=read)


class Study:
    """A study below a root. Its tables are made when they are first asked for: open it again to see what came since.

    Attributes:
        folder: Where its files are.
        search: Its trials as Optuna has them; `search.study` is Optuna's own study.
        trained: Stages that the `run` which returned it trained; 0 of one that was opened.
    """

    def __init__(
        self,
        folder: StudyFolder,
        *,
        search: Search | None = None,
        tables: Tables | None = None,
        trained: int = 0,
        found: dict[str, Description] | None = None,
        code: Code = NO_CODE,
    ) -> None:
        """Opens the study of a folder; `found` keeps what finished stages left, for who looks again and again.

        Raises InputError where there is no such study.
        """
        from takd.study.search.optimization import open_search

        self.folder, self.trained = folder, trained
        self.search = search or open_search(folder)
        self._made, self._found, self._code = tables, found, code

    def __repr__(self) -> str:
        from takd.analysis.files import without_secret

        return f"<takd study {self.name} in {without_secret(self.root)}>"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def root(self) -> str:
        """The folder's absolute path, or the URI."""
        return self.folder.root

    @property
    def space(self) -> Space:
        """As it was last run."""
        return self.search.space

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to try, to train or to confirm."""
        from takd.study.confirm import left_to_confirm

        return not self.search.is_open and not left_to_confirm(self.folder, self.search, self.trials)

    @cached_property
    def _tables(self) -> Tables:
        from takd.study.confirm import has_ended
        from takd.study.results import build_results, standing_results

        if self._made is not None:
            return self._made
        standing = standing_results(self.folder, self.search) if has_ended(self.folder, self.search) else None
        return standing or build_results(self.folder, self.search, self._found)

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each stage of each path of each trial, as in `results/trials.parquet`; a new frame each time.

        `status` is done, failed, pruned or unfinished; accuracies are fractions, times are seconds. All columns are in
        `takd.study.results.TRIALS`.
        """
        return self._tables.trials.to_pandas()

    @property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each finished stage, as in `results/epochs.parquet`; a new frame each time.

        Columns are in `takd.study.results.EPOCHS`.
        """
        return self._tables.epochs.to_pandas()

    @property
    def arms(self) -> pd.DataFrame:
        """The table of arms, as numbers: a row for each arm that has a finished student, in the paper's order.

        Accuracies and differences are in percent and percentage points; see `takd.analysis.arms.arms_table`.
        """
        import pandas as pd

        from takd.analysis.arms import arms_table  # SciPy takes a second
        from takd.analysis.evidence.chosen import chosen_students

        return arms_table(trials) if len(chosen_students(trials := self.trials)) else pd.DataFrame(columns=["arm"])

    @cached_property
    def stages(self) -> Mapping[str, Stage]:
        """The stages of all trials so far by their keys: what each is trained by and from, finished or not."""
        return self.search.stages()

    @cached_property
    def dataset(self) -> Dataset:
        """The images and labels that stages are trained and measured on, uint8 `[n, channels, height, width]`.

        Raises InputError where this machine has not the same ones.
        """
        from takd.trainables.datasets.dataset import load_for

        return load_for(self.search.dataset, self.folder.artifacts)

    def model(self, stage_key: str) -> nn.Module:
        """The model of a finished stage with its weights, in evaluation mode, on the CPU.

        From images float32 `[n, channels, height, width]`, normalised as `dataset.normalization` says, to logits
        `[n, classes]`. The key is one of `stages`, or its beginning. Raises InputError where there is no such stage, or
        it has no weights that are whole.
        """
        import torch

        from takd.trainables.measuring import trained_module
        from takd.trainables.store.artifacts import WEIGHTS

        stage = self._stage(stage_key)
        dataset = self.dataset
        self.use_code()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the caller's random numbers stay as they were
            module = self._left(stage, WEIGHTS, lambda: trained_module(self.folder.artifacts, stage, dataset))
        return module.eval()

    def soft_targets(self, stage_key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits that others learn from a finished teacher or assistant: `[views, train examples, classes]`.

        Examples are all of `dataset.train`, in its order; there is one view where none is augmented. The key is one of
        `stages`, or its beginning. Raises InputError where there is no such stage, or it has none that are whole:
        nobody learns from a student.
        """
        import numpy as np

        from takd.trainables.store.artifacts import needed_files

        stage, store = self._stage(stage_key), self.folder.artifacts
        [file] = needed_files(stage)
        logits = self._left(stage, file, lambda: store.soft_targets(stage, self._views_of(stage)))
        return np.stack(logits)

    def _views_of(self, stage: Stage) -> list[ViewName]:
        """In which others learn from it; raises InputError where nobody does."""
        learn = [each for each in self.stages.values() if stage.key in [upstream.key for upstream in each.upstream]]
        if not learn:
            raise InputError(
                f"study {self.name}: stage {stage.key[:12]} ({stage.name}) has no soft targets: nothing learns from it"
            )
        left = () if stage.given else stage.recipe.left_views
        own = {*left} or {view for each in learn for view in each.recipe.view_names}
        whole = [view for view in own if view is None or NamedView.parse(view).examples is None]  # of all examples
        return sorted(whole, key=view_number)

    def use_code(self) -> None:
        """Imports the code that the study was opened with; raises InputError unless it is the code it was run with."""
        use(self._code)
        try:
            check_digests(self.space.code_digests)
        except InputError as error:
            raise InputError(f"study {self.name}: {error}") from None

    def write_results(self) -> None:
        """Writes the tables as Parquet and the figure below the root, as a run does when it ends."""
        from takd.study.report import write_figure
        from takd.study.results import write_results

        self._tables = write_results(self.folder, self.search)
        write_figure(self.folder, self.trials)

    def _stage(self, key: str) -> Stage:
        found = [each for each in self.stages if each.startswith(key)]
        if len(found) == 1:
            return self.stages[found[0]]
        if found:
            raise InputError(
                f"study {self.name}: {len(found)} stages have keys that begin with {key!r}; give more of it"
            )
        if not self.stages:
            raise InputError(f"study {self.name}: has no stage {key}, and no other yet")
        by_beginning = {each[: max(len(key), 12)]: stage for each, stage in self.stages.items()}
        [nearest] = difflib.get_close_matches(key, by_beginning, n=1, cutoff=0)
        name = by_beginning[nearest].name
        raise InputError(f"study {self.name}: has no stage {key}; the nearest key begins with {nearest[:12]} ({name})")

    def _left(self, stage: Stage, file: str, read: Callable[[], T]) -> T:
        """What a stage left in a file of its artifact; raises InputError where that is not there or not whole."""
        about = f"study {self.name}: stage {stage.key[:12]} ({stage.name})"
        description = self.folder.artifacts.describe(stage.key)
        if description is None:
            rows = self._tables.trials.select(["stage_key", "status", "error"]).to_pylist()
            # The tables may be older than the stage.
            own = next((row for row in rows if row["stage_key"] == stage.key), {"status": "unfinished", "error": None})
            reason = f": {own['error']}" if own["error"] else ""
            raise InputError(f"{about} has left nothing: it is {own['status']}{reason}")
        if file not in description["files"]:
            raise InputError(f"{about} has no {file}: logits are all that is known of it")
        try:
            return read()
        except InputError:
            raise
        except (FileNotFoundError, ValueError) as error:
            raise InputError(f"{about}: {error}; `takd run` makes it again") from None
