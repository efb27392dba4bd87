"""The command line: `takd`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from takd.study.apart import NoAnswerError, log_to_stderr
from takd.study.arguments import (
    add_compare,
    add_dashboard,
    add_data,
    add_debug,
    add_export,
    add_folder,
    add_gc,
    add_images,
    add_json,
    add_name,
    add_remove,
    add_report,
    add_root,
    add_run,
    add_space,
    add_status,
    add_sync,
)
from takd.study.stopping import INTERRUPTED, Stop, StoppedError, end_process, stopped_by_signals

# All else is loaded where it is used: `takd --help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from takd.search_spaces import Space
    from takd.study.folder import StudyFolder
    from takd.study.study import Study

OK, FAILED, BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; bad input is one line on stderr and exit code 2."""
    log_to_stderr()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(arguments).parse_args(arguments)
        options.arguments = arguments
        return int(options.command(options))
    except NoAnswerError as error:
        print(f"takd: {error}; nothing is lost, run it again", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if "--debug" in arguments or not _is_bad_input(error):
            raise
        print(f"takd: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _is_bad_input(error: Exception) -> bool:
    from takd.search_spaces import InputError

    if isinstance(error, InputError):
        return True
    from takd.trainables.store.storage import RootAwayError

    return isinstance(error, RootAwayError)


def _text_console() -> "Console":
    from takd.study.tracking.progress import text_console

    return text_console()


class _Version(argparse.Action):
    """Looked up when somebody asks."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from takd import __version__

        print(f"takd {__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A wrong call is bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        from takd.search_spaces import InputError

        raise InputError(f"{message}; see {self.prog} --help")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Of all commands, but with the arguments of the one alone that is called: what they may be takes imports."""
    parser = _Parser(
        prog="takd", description="Studies of knowledge distillation with teacher assistants.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, help="print the version of takd and leave")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    called = next((each for each in arguments if not each.startswith("-")), None)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        own.set_defaults(command=command.function)
        if name == called:
            for add in (*command.arguments, add_debug):
                add(own)
    return parser


@dataclass(frozen=True)
class Command:
    """What a command does, what is said of it, and what adds its arguments."""

    function: Callable[[argparse.Namespace], int]
    help: str
    arguments: Sequence[Callable[[argparse.ArgumentParser], None]] = ()


def _space_and_name(options: argparse.Namespace) -> "tuple[Space, str]":
    """A preset's or a file's, or that of a study below the root, which goes on with it."""
    from takd.search_spaces import InputError, load_space, presets
    from takd.study.folder import can_be_name, check_name, study_folder

    given = {"trials": options.trials, "lanes": options.lanes}
    overrides = [*options.set, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    if options.name:
        check_name(options.name, "--name")
    if options.space not in presets() and not Path(options.space).is_file() and can_be_name(options.space):
        space = study_folder(options.root, options.space, options.storage).own_space(overrides)
        if space is not None:
            return space, options.name or options.space
    name = options.name or Path(options.space).stem
    space = load_space(options.space, overrides)
    if not can_be_name(name):
        raise InputError(f"space {options.space}: {name!r} can't be a study's name; give the study one with --name")
    return space, name


def _study(options: argparse.Namespace) -> "Study":
    from takd.study.study import open_study

    return open_study(options.name, options.root, options.storage)


def _folder(options: argparse.Namespace) -> "StudyFolder":
    from takd.study.folder import study_folder

    return study_folder(options.root, options.name, options.storage)


def _run(options: argparse.Namespace) -> int:
    from takd.study.folder import without_password
    from takd.study.study import run

    space, name = _space_and_name(options)
    console, stop = _text_console(), Stop()
    try:
        with stopped_by_signals(stop, again=end_process):
            study = run(
                space,
                name,
                root=options.root,
                storage=options.storage,
                slots=options.slots,
                address=options.address,
                wandb=options.wandb,
                tensorboard=options.tensorboard,
                profile=options.profile,
                console=console,
                stop=stop,
                source=f"space {options.space}",
            )
    except (KeyboardInterrupt, StoppedError) as error:
        again = shlex.join(["takd", *map(without_password, options.arguments)])
        print(f"takd: stopped: {str(error) or 'interrupted'}; go on with: {again}", file=sys.stderr)
        return FAILED if isinstance(error, StoppedError) else INTERRUPTED
    from takd.study.report import print_arms
    from takd.study.status import print_failures, pruned_students

    trials = study.trials
    print_arms(study.folder, trials, console)
    console.print(f"{study.trained} stages trained in this run{pruned_students(trials)}; the study is complete")
    return FAILED if print_failures(trials, console) else OK


def _plan(options: argparse.Namespace) -> int:
    space, name = _space_and_name(options)
    from takd.study.folder import study_folder
    from takd.study.plan import print_plan

    folder = study_folder(options.root, name, options.storage)
    print_plan(space, f"space {options.space}", folder, _text_console())
    return OK


def _status(options: argparse.Namespace) -> int:
    from takd.study.status import follow_status, print_status

    if options.json:
        if options.follow:
            from takd.search_spaces import InputError

            raise InputError("status: --json and --follow exclude each other")
        from takd.study.managing import as_json

        print(as_json.text(as_json.status(_study(options))))
    elif options.follow:
        follow_status(_folder(options), _text_console())
    else:
        print_status(_study(options), _text_console())
    return OK


def _dashboard(options: argparse.Namespace) -> int:
    from takd.study.tracking.dashboard import serve_dashboard

    with suppress(KeyboardInterrupt):
        serve_dashboard(_folder(options), options.port, _text_console())
    return OK


def _sync(options: argparse.Namespace) -> int:
    from takd.study.tracking.wandb_sync import sync_study

    folder, console = _folder(options), _text_console()
    failure = sync_study(folder, console)
    if failure:
        print(f"takd: W&B: {failure}; run it again to go on", file=sys.stderr)
        return FAILED
    if options.report:
        from takd.study.search.optimization import open_search
        from takd.study.tracking.wandb_report import save_report

        console.print(f"report   {save_report(folder, open_search(folder).space.goes_by)}")
    return OK


def _watch(options: argparse.Namespace) -> int:
    from takd.study.tracking.wandb_sync import watch_study

    return watch_study(_folder(options))


def _results(options: argparse.Namespace) -> int:
    from takd.study.report import print_arms

    study = _study(options)
    study.write_results()
    if options.json:
        from takd.study.managing import as_json

        print(as_json.text(as_json.results(study)))
        return OK
    print_arms(study.folder, study.trials, _text_console())
    return OK


def _list(options: argparse.Namespace) -> int:
    from takd.study.managing import as_json
    from takd.study.managing.studies import list_studies, print_studies

    if options.json:
        print(as_json.text(list_studies(options.root, options.storage)))
    else:
        print_studies(options.root, options.storage, _text_console())
    return OK


def _remove(options: argparse.Namespace) -> int:
    from takd.study.managing.studies import remove_study, what_goes

    folder = _folder(options)
    goes = what_goes(folder)
    if not options.yes:
        if not sys.stdin.isatty():
            from takd.search_spaces import InputError

            raise InputError(f"remove {options.name}: nobody is here to be asked; --yes removes it")
        if input(f"remove {goes}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return FAILED
    remove_study(folder)
    print(f"removed {goes}; takd gc finds what no other study uses")
    return OK


def _gc(options: argparse.Namespace) -> int:
    from takd.study.managing.garbage import collect

    collect(options.root, options.storage, options.older * 3600, options.yes, _text_console())
    return OK


def _report(options: argparse.Namespace) -> int:
    from takd.study.folder import absolute_root
    from takd.study.report import write_report

    write_report(absolute_root(options.root), options.names, _text_console())
    return OK


def _compare(options: argparse.Namespace) -> int:
    from takd.study.folder import absolute_root
    from takd.study.report import print_comparison

    print_comparison(absolute_root(options.root), options.names, _text_console())
    return OK


def _export(options: argparse.Namespace) -> int:
    from takd.search_spaces import InputError
    from takd.study.export.export import Wanted, export_best, print_export, refusals  # imports torch
    from takd.study.study import open_study

    if options.max_drop is not None and not options.int8:
        raise InputError("--max-drop is only for --int8, whose accuracy it limits")
    if options.pareto and (options.top > 1 or options.max_params or options.max_latency):
        raise InputError("--pareto is for students of all costs; leave --top, --max-params and --max-latency out")
    study = open_study(options.name, options.root, options.storage, options.code)
    console = _text_console()
    asked = {name: getattr(options, name) for name in Wanted.__dataclass_fields__}
    refused = []
    for exported in export_best(study, options.out, Wanted(**{k: v for k, v in asked.items() if v is not None})):
        print_export(exported, console)
        refused += refusals(exported)
    for line in refused:
        print(f"takd: {line}", file=sys.stderr)
    return FAILED if refused else OK


def _verify(options: argparse.Namespace) -> int:
    from takd.study.export.verify import verify_export

    wrong = verify_export(options.folder, _text_console())
    for each in wrong:
        print(f"takd: {options.folder}/{each}", file=sys.stderr)
    return FAILED if wrong else OK


def _predict(options: argparse.Namespace) -> int:
    from takd.study.export.predict import predictions, print_predictions

    if options.json:
        from takd.study.managing import as_json

        print(as_json.text(predictions(options.folder, options.images)))
        return OK
    print_predictions(options.folder, options.images, _text_console())
    return OK


def _data(options: argparse.Namespace) -> int:
    from takd.search_spaces import InputError
    from takd.study.data import import_files, print_dataset, print_datasets  # imports torch
    from takd.trainables.datasets.built_in import dataset_names
    from takd.trainables.datasets.own_images import Wishes

    logging.getLogger("takd").setLevel(logging.INFO)  # what was done to the images is said
    console = _text_console()
    if options.dataset is None:
        if options.source is not None:
            raise InputError(f"data: DATASET is missing; valid: {', '.join(dataset_names())}")
        print_datasets(console)
        return OK
    if options.source is None:
        raise InputError(f"data {options.dataset}: --from DIR is missing; see takd data --help")
    asked = ("size", "fit", "color", "split", "table", "skip_broken", "keep_encoded")
    wishes = Wishes(**{name: getattr(options, name) for name in asked})
    dataset = import_files(options.dataset, options.source, options.name, options.validation, options.download, wishes)
    print_dataset(dataset, console)
    return OK


COMMANDS = {
    "run": Command(_run, "run a study, or go on with it", (add_space, add_run, add_root)),
    "plan": Command(_plan, "say what would run and what it would cost; trains nothing", (add_space, add_root)),
    "status": Command(
        _status,
        "say how far a study is: counts by role and state, best by arm, failures",
        (add_name, add_root, add_status, add_json),
    ),
    "dashboard": Command(_dashboard, "serve Optuna's dashboard of a study, live", (add_name, add_root, add_dashboard)),
    "sync": Command(_sync, "upload the W&B runs of a study that W&B does not have yet", (add_name, add_root, add_sync)),
    "list": Command(_list, "list the studies below a root", (add_root, add_json)),
    "remove": Command(_remove, "delete a study; what it trained stays for others", (add_name, add_root, add_remove)),
    "gc": Command(_gc, "find what no study below a root uses any more, with sizes, or delete it", (add_root, add_gc)),
    "watch": Command(_watch, "show a study's W&B runs in W&B's own terminal view", (add_name, add_root)),
    "results": Command(
        _results, "rebuild the Parquet tables and print the table of arms", (add_name, add_root, add_json)
    ),
    "report": Command(_report, "execute the notebooks into one page, with figures and tables", (add_report, add_root)),
    "compare": Command(_compare, "show studies side by side", (add_compare, add_root)),
    "export": Command(
        _export,
        "write the best student as files that need no takd, with a model card",
        (add_name, add_root, add_export),
    ),
    "verify": Command(_verify, "check an export's digests, and measure it on test again", (add_folder,)),
    "predict": Command(_predict, "name the classes of images, by an export", (add_folder, add_images, add_json)),
    "data": Command(
        _data, "check a dataset's files and convert them to Arrow; list the datasets that are converted", (add_data,)
    ),
}
