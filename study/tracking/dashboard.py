"""`takd dashboard`: Optuna's dashboard on loopback, over the storage of a study that may be running."""

import sys
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from rich.console import Console

from takd.search_spaces import InputError
from takd.study.folder import StudyFolder
from takd.study.search.optimization import open_search
from takd.study.search.storages import open_optuna

HOST = "127.0.0.1"
LEASE = " (lease)"  # how the names of lease studies end
NOTE = """A trial is one configuration: an arm with its hyperparameters chosen. It has a path for each student seed.

| attribute | meaning |
|---|---|
| `arm` | how the student is taught: `labels` alone (NOKD), `kd` by the teacher (BLKD), `takd:A` by assistant A (TAKD) |
| `path` | the models from the teacher to the student |
| `seeds` | of the students |
| `stages` | role, model and the start of the key of every stage; artifacts are named by the whole key |
| `students` | validation {metric} by seed, in percent but for the loss |
| `path_seconds` | training seconds of all stages of the paths |

The objective is the **mean validation {metric}** of the students. These are numbers of the search: they can rank
configurations, but they cannot prove that a difference is real.
"""


def serve_dashboard(folder: StudyFolder, port: int, console: Console) -> None:
    """Serves until interrupted; raises InputError where there is no study, no dashboard, or the port is taken."""
    search = open_search(folder)
    try:
        from optuna_dashboard import get_note, save_note, wsgi
    except ImportError:
        raise InputError("takd dashboard needs optuna-dashboard: pip install 'takd[dashboard]'") from None
    if not get_note(search.study):
        save_note(search.study, NOTE.format(metric=search.space.metric))
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
    """The storage, but for the studies in which `takd.study.search.lease` keeps its claims."""
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
