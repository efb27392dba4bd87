"""The command line: `takd`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from takd.search_spaces import InputError, Space, load_space, presets
from takd.study.apart import NoAnswerError, log_to_stderr
from takd.study.folder import (
    ROOT,
    StudyFolder,
    absolute_root,
    can_be_name,
    check_name,
    study_folder,
    without_password,
)
from takd.study.stopping import INTERRUPTED, Stop, StoppedError, end_process, stopped_by_signals
from takd.study.study import Study, open_study, run
from takd.study.tracking.progress import text_console
from takd.trainables.datasets.built_in import BUILT_IN, OWN

OK, FAILED, BAD_INPUT = 0, 1, 2
WANDB_HELP = (
    "where W&B runs go (default: online where a key is found, else offline); the project is WANDB_PROJECT, else takd, "
    "and the entity is WANDB_ENTITY, else the key's"
)
DATA_HELP = "check a dataset's files and convert them to Arrow; list the datasets that are converted"
DATASETS = (*BUILT_IN, OWN)
DEBUG_HELP = "show a traceback where bad input ends in one line"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; bad input is one line on stderr and exit code 2."""
    log_to_stderr()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser().parse_args(arguments)
        options.arguments = arguments
        return int(options.command(options))
    except InputError as error:
        if "--debug" in arguments:
            raise
        print(f"takd: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except NoAnswerError as error:
        print(f"takd: {error}; nothing is lost, run it again", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


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
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="takd", description="Studies of knowledge distillation with teacher assistants.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, help="print the version of takd and leave")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run a study, or go on with it", space=True)
    run.add_argument("--wandb", choices=("online", "offline", "disabled"), help=WANDB_HELP)
    run.add_argument("--profile", action="store_true", help="say where the time went, as a table and a picture")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--slots", type=_positive, metavar="N", help="CPU cores to use here (default: all)")
    where.add_argument("--address", metavar="A", help="a running Ray cluster: auto, or HOST:PORT (default: a Ray here)")
    _command(commands, "plan", _plan, "say what would run and what it would cost; trains nothing", space=True)
    run.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files into the study's folder")
    status = _command(
        commands,
        "status",
        _status,
        "say how far a study is: counts by role and state, best by arm, failures",
        study=True,
    )
    status.add_argument(
        "--follow",
        action="store_true",
        help="keep the table up to date until the study ends, whoever runs it (Ctrl-C leaves)",
    )
    dashboard = _command(commands, "dashboard", _dashboard, "serve Optuna's dashboard of a study, live", study=True)
    dashboard.add_argument("--port", type=_port, default=8080, metavar="P", help="port on 127.0.0.1 (default: 8080)")
    sync = _command(commands, "sync", _sync, "upload the W&B runs of a study that W&B does not have yet", study=True)
    sync.add_argument("--report", action="store_true", help="create a W&B report of the study (needs WANDB_ENTITY)")
    listed = _command(commands, "list", _list, "list the studies below a root")
    remove = _command(commands, "remove", _remove, "delete a study; what it trained stays for others", study=True)
    remove.add_argument("--yes", action="store_true", help="do not ask")
    gc = _command(commands, "gc", _gc, "find what no study below a root uses any more, with sizes, or delete it")
    gc.add_argument("--yes", action="store_true", help="delete it")
    gc.add_argument(
        "--older", type=_hours, default=24.0, metavar="H", help="only what nobody wrote for H hours (default: 24)"
    )
    _command(commands, "watch", _watch, "show a study's W&B runs in W&B's own terminal view", study=True)
    results = _command(
        commands, "results", _results, "rebuild the Parquet tables and print the table of arms", study=True
    )
    report = _command(commands, "report", _report, "execute the notebooks into one page, with figures and tables")
    report.add_argument("names", nargs="+", metavar="NAME", help="name of a study; of several, one report on all")
    compare = _command(commands, "compare", _compare, "show studies side by side")
    compare.add_argument("names", nargs="+", metavar="NAME", help="two or more studies; of another root as ROOT/NAME")
    export = _command(
        commands, "export", _export, "write the best student as files that need no takd, with a model card", study=True
    )
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to create")
    export.add_argument("--arm", metavar="A", help="only students of this arm (default: of all arms)")
    export.add_argument("--metric", metavar="NAME", help="what is best (default: the study's metric)")
    export.add_argument("--max-params", type=_positive, metavar="N", help="only students of at most N parameters")
    export.add_argument(
        "--max-latency",
        type=_milliseconds,
        metavar="MS",
        help="only students that take at most MS milliseconds an image here, in one thread",
    )
    export.add_argument(
        "--top", type=_positive, default=1, metavar="K", help="the best K configurations, in DIR/1 to DIR/K"
    )
    export.add_argument(
        "--pareto",
        action="store_true",
        help="each size of student that no other beats in what it reaches and costs, in a folder of its own",
    )
    export.add_argument("--int8", action="store_true", help="write an int8 ONNX file too")
    export.add_argument(
        "--max-drop",
        type=_points,
        metavar="P",
        help="with --int8: leave that file out where it loses more than P points of validation accuracy (default: 1)",
    )
    export.add_argument(
        "--with-preprocessing", action="store_true", help="make files that take raw pixels and give probabilities"
    )
    export.add_argument(
        "--code",
        action="append",
        default=[],
        metavar="FILE",
        help="what the space names as its code, where models are of it; may be given several times",
    )
    export.add_argument("--force", action="store_true", help="replace an export that is there")
    verify = _command(
        commands, "verify", _verify, "check an export's digests, and measure it on test again", root=False
    )
    verify.add_argument("folder", type=Path, metavar="DIR", help="folder that takd export wrote")
    predict = _command(commands, "predict", _predict, "name the classes of images, by an export", root=False)
    predict.add_argument("folder", type=Path, metavar="DIR", help="folder that takd export wrote")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image file that Pillow reads")
    for each in (status, results, listed, predict):
        each.add_argument("--json", action="store_true", help="for programs: one JSON document, see docs/json.md")
    data = commands.add_parser("data", help=DATA_HELP, description=DATA_HELP, allow_abbrev=False)
    data.add_argument(
        "dataset",
        metavar="DATASET",
        nargs="?",
        choices=DATASETS,
        help=f"{', '.join(DATASETS)} (default: list what is there)",
    )
    data.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="where its files are; images: a folder or an archive of train/<class>/* and test/<class>/*, of <class>/*, "
        "or of what --table names; Parquet files with images; a MedMNIST .npz",
    )
    data.add_argument("--name", metavar="NAME", help="images only: what spaces call them (default: the folder's name)")
    data.add_argument(
        "--validation",
        type=_positive,
        metavar="N",
        help="images only: how many are held out of train (default: a tenth)",
    )
    images = data.add_argument_group("images only")
    images.add_argument(
        "--size", type=_size, metavar="S", help="bring all to 224 (x 224) or 224x160 (width x height) pixels"
    )
    images.add_argument(
        "--fit",
        choices=("crop", "pad", "stretch"),
        help="how: cut the centre out (default), add black, or change the shape",
    )
    images.add_argument("--color", choices=("rgb", "grey"), help="make all RGB, or grey (default: grey where all are)")
    images.add_argument(
        "--split",
        type=_shares,
        metavar="A/B/C",
        help="percent for train, validation and test, by class, where the files have no splits: 70/15/15",
    )
    images.add_argument(
        "--table", type=Path, metavar="FILE", help="CSV or Parquet with image, label, and maybe split and group"
    )
    images.add_argument("--skip-broken", action="store_true", help="go on without images that can't be read")
    data.add_argument("--download", action="store_true", help="cifar10, cifar100: fetch the archive into DIR first")
    data.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    data.set_defaults(command=_data)
    return parser


def _command(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    function: Callable[[argparse.Namespace], int],
    help: str,
    space: bool = False,
    study: bool = False,
    root: bool = True,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(command=function)
    if space:
        command.add_argument(
            "space",
            metavar="SPACE",
            help=f"a preset ({', '.join(presets())}), a YAML file, or a study below the root, to go on with its space",
        )
        command.add_argument("--name", metavar="N", help="name of the study (default: the space's)")
        command.add_argument(
            "--trials", type=_positive, metavar="N", help="configurations to try, in place of the space's"
        )
        command.add_argument(
            "--lanes",
            metavar="L",
            help="how many stages of one model and recipe a worker trains side by side: auto (measured), or a number",
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="replace one key of the space, such as student.temperature=4",
        )
    command.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    if study:
        command.add_argument("name", metavar="NAME", help="name of the study")
    if not root:
        return command
    command.add_argument(
        "--root",
        metavar="URI",
        help=f"folder, s3://... or gs://... of studies and artifacts (default: TAKD_ROOT, else {ROOT})",
    )
    command.add_argument(
        "--storage", metavar="URL", help="Optuna's database (default: TAKD_STORAGE, else a journal file in the root)"
    )
    return command


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number of at least 1")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and 1 <= int(side) <= 4096 for side in sides):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected pixels, such as 224 or 224x160, each 1 to 4096")
    return int(sides[0]), int(sides[-1])


def _shares(text: str) -> tuple[float, float, float]:
    with suppress(ValueError):
        train, validation, test = (float(each) / 100 for each in text.split("/"))
        if min(train, validation, test) > 0 and abs(train + validation + test - 1) < 1e-9:
            return train, validation, test
    raise argparse.ArgumentTypeError(
        f"is {text!r}; expected percent for train, validation and test that add up to 100, such as 70/15/15"
    )


def _milliseconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; expected milliseconds, above 0")


def _points(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 100:
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; expected percentage points, 0 to 100")


def _hours(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; expected hours, 0 or more")


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a port, 0 to 65535 (0: any that is free)")
    return int(text)


def _space_and_name(options: argparse.Namespace) -> tuple[Space, str]:
    """A preset's or a file's, or that of a study below the root, which goes on with it."""
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


def _study(options: argparse.Namespace) -> Study:
    return open_study(options.name, options.root, options.storage)


def _folder(options: argparse.Namespace) -> StudyFolder:
    return study_folder(options.root, options.name, options.storage)


def _run(options: argparse.Namespace) -> int:
    space, name = _space_and_name(options)
    console, stop = text_console(), Stop()
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
    from takd.study.report import (
        print_arms,
        print_failures,
        pruned_students,
    )  # imports SciPy: other commands need not wait for it

    trials = study.trials
    print_arms(study.folder, trials, console)
    console.print(f"{study.trained} stages trained in this run{pruned_students(trials)}; the study is complete")
    return FAILED if print_failures(trials, console) else OK


def _plan(options: argparse.Namespace) -> int:
    space, name = _space_and_name(options)
    from takd.study.plan import print_plan

    folder = study_folder(options.root, name, options.storage)
    print_plan(space, f"space {options.space}", folder, text_console())
    return OK


def _status(options: argparse.Namespace) -> int:
    from takd.study.status import follow_status, print_status

    if options.json:
        if options.follow:
            raise InputError("status: --json and --follow exclude each other")
        from takd.study.managing import as_json

        print(as_json.text(as_json.status(_study(options))))
    elif options.follow:
        follow_status(_folder(options), text_console())
    else:
        print_status(_study(options), text_console())
    return OK


def _dashboard(options: argparse.Namespace) -> int:
    from takd.study.tracking.dashboard import serve_dashboard

    with suppress(KeyboardInterrupt):
        serve_dashboard(_folder(options), options.port, text_console())
    return OK


def _sync(options: argparse.Namespace) -> int:
    from takd.study.tracking.wandb_sync import sync_study

    folder, console = _folder(options), text_console()
    failure = sync_study(folder, console)
    if failure:
        print(f"takd: W&B: {failure}; run it again to go on", file=sys.stderr)
        return FAILED
    if options.report:
        from takd.study.tracking.wandb_report import save_report

        console.print(f"report   {save_report(folder)}")
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
    print_arms(study.folder, study.trials, text_console())
    return OK


def _list(options: argparse.Namespace) -> int:
    from takd.study.managing import as_json
    from takd.study.managing.studies import list_studies, print_studies

    if options.json:
        print(as_json.text(list_studies(options.root, options.storage)))
    else:
        print_studies(options.root, options.storage, text_console())
    return OK


def _remove(options: argparse.Namespace) -> int:
    from takd.study.managing.studies import remove_study, what_goes

    folder = _folder(options)
    goes = what_goes(folder)
    if not options.yes:
        if not sys.stdin.isatty():
            raise InputError(f"remove {options.name}: nobody is here to be asked; --yes removes it")
        if input(f"remove {goes}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return FAILED
    remove_study(folder)
    print(f"removed {goes}; takd gc finds what no other study uses")
    return OK


def _gc(options: argparse.Namespace) -> int:
    from takd.study.managing.garbage import collect

    collect(options.root, options.storage, options.older * 3600, options.yes, text_console())
    return OK


def _report(options: argparse.Namespace) -> int:
    from takd.study.report import write_report

    write_report(absolute_root(options.root), options.names, text_console())
    return OK


def _compare(options: argparse.Namespace) -> int:
    from takd.study.report import print_comparison

    print_comparison(absolute_root(options.root), options.names, text_console())
    return OK


def _export(options: argparse.Namespace) -> int:
    from takd.study.export.export import Wanted, export_best, print_export, refusals  # imports torch

    if options.max_drop is not None and not options.int8:
        raise InputError("--max-drop is only for --int8, whose accuracy it limits")
    if options.pareto and (options.top > 1 or options.max_params or options.max_latency):
        raise InputError("--pareto is for students of all costs; leave --top, --max-params and --max-latency out")
    study = open_study(options.name, options.root, options.storage, options.code)
    console = text_console()
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

    wrong = verify_export(options.folder, text_console())
    for each in wrong:
        print(f"takd: {options.folder}/{each}", file=sys.stderr)
    return FAILED if wrong else OK


def _predict(options: argparse.Namespace) -> int:
    from takd.study.export.predict import predictions, print_predictions

    if options.json:
        from takd.study.managing import as_json

        print(as_json.text(predictions(options.folder, options.images)))
        return OK
    print_predictions(options.folder, options.images, text_console())
    return OK


def _data(options: argparse.Namespace) -> int:
    from takd.study.data import import_files, print_dataset, print_datasets  # imports torch
    from takd.trainables.datasets.own_images import Wishes

    logging.getLogger("takd").setLevel(logging.INFO)  # what was done to the images is said
    console = text_console()
    if options.dataset is None:
        if options.source is not None:
            raise InputError(f"data: DATASET is missing; valid: {', '.join(DATASETS)}")
        print_datasets(console)
        return OK
    if options.source is None:
        raise InputError(f"data {options.dataset}: --from DIR is missing; see takd data --help")
    asked = ("size", "fit", "color", "split", "table", "skip_broken")
    wishes = Wishes(**{name: getattr(options, name) for name in asked})
    dataset = import_files(options.dataset, options.source, options.name, options.validation, options.download, wishes)
    print_dataset(dataset, console)
    return OK
