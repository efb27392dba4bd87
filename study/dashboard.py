"""`takd dashboard`: Optuna's dashboard on loopback, over the storage of a study that may be running."""

import json
import sys
from collections.abc import Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from rich.console import Console

from search_spaces import InputError, Path
from study.folder import StudyFolder
from study.graph import Description
from study.optimization import open_optuna, open_search

HOST = "127.0.0.1"
LEASE = " (lease)"  # how the names of lease studies end
NOTE = """An Optuna trial is a *proposal*: one configuration of an arm, with a path for each of its student seeds.

| attribute | meaning |
|---|---|
| `arm` | how the student is taught: `labels` alone (NOKD), `kd` by the teacher (BLKD), `takd:A` by assistant A (TAKD) |
| `path` | the models from the teacher to the student |
| `seeds` | of the students |
| `stages` | role, model and the start of the key of every stage; artifacts are named by the whole key |
| `students`, `path_seconds` | validation accuracy in percent by seed; training seconds of all stages of the paths |

The objective is the **mean validation accuracy** of the students. These are numbers of the search: they rank, they
don't prove.
"""


def proposal_attributes(paths: Iterable[Path]) -> dict[str, Any]:
    """What a trial's user attributes say of its paths when it is proposed, beside arm, path and seeds."""
    stages = {stage.key: f"{stage.role} {stage.model} {stage.key[:12]}" for path in paths for stage in path.stages}
    return {"stages": list(stages.values())}


def outcome_attributes(paths: Iterable[Path], found: Mapping[str, Description | None]) -> dict[str, Any]:
    """What they say when it has ended; `found` has descriptions by stage key."""
    outcomes = {key: description["outcome"] for key, description in found.items() if description}
    stages = {stage.key: stage for path in paths for stage in path.stages}
    students = {
        str(path.student.seed): round(100 * outcomes[path.student.key]["metrics"]["validation"]["accuracy"], 2)
        for path in paths
        if path.student.key in outcomes
    }
    seconds = sum(outcomes[key]["train_seconds"] for key in stages if key in outcomes)
    return {"students": json.dumps(students), "path_seconds": round(seconds, 2)}


def serve_dashboard(folder: StudyFolder, port: int, console: Console) -> None:
    """Serves until interrupted; raises InputError where there is no study, no dashboard, or the port is taken."""
    search = open_search(folder)
    try:
        from optuna_dashboard import get_note, save_note, wsgi
    except ImportError:
        raise InputError("takd dashboard needs optuna-dashboard: pip install 'takd[dashboard]'") from None
    if not get_note(search.study):
        save_note(search.study, NOTE)
    try:
        server = make_server(HOST, port, _looking_only(wsgi(_without_leases(folder))), _Threads, _Quiet)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: can't be served ({getattr(error, 'strerror', None) or error})") from None
    with server:
        page = f"http://{HOST}:{server.server_port}/dashboard/studies/{search.study._study_id}"
        console.print(f"{page}  (Ctrl-C ends it)")
        sys.stdout.flush()
        server.serve_forever()


def _without_leases(folder: StudyFolder) -> Any:
    """The storage, but for the studies in which `study.lease` keeps its claims."""
    storage: Any = open_optuna(folder)
    everything = storage.get_all_studies
    storage.get_all_studies = lambda: [each for each in everything() if not each.study_name.endswith(LEASE)]
    return storage


def _looking_only(dashboard: Any) -> Any:
    """Refuses what would change the study, from this page or from another that a browser has open."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return dashboard(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "takd dashboard only looks"}']

    return application


class _Threads(ThreadingMixIn, WSGIServer):
    """Answers the page's many requests side by side."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *_: Any) -> None: ...
