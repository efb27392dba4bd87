"""Whether every node sees the root that the study's process sees: each reads there what the other wrote. No torch."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from takd.trainables.store.storage import first_line, open_storage

SIGHT_SECONDS = 5.0  # that a file of another machine's may take to be seen in a mounted folder
SHARE = "every node needs one and the same folder at this path, on a shared mount; or give a bucket as --root"


class SharedRoot:
    """The study's side, for one run. What is written goes when that ends, or when the next begins."""

    def __init__(self, root: str, folder: str) -> None:
        """`folder` is the study's own, relative to the root."""
        self.root, self.folder = root, folder
        self.storage = open_storage(root)
        self.close()
        self.sign = f"{folder}/{uuid.uuid4().hex}"
        self.seen: set[str] = set()  # nodes that see this root
        self.storage.replace(self.sign, self.sign.encode())

    def problem(self, worker: Mapping[str, Any]) -> str | None:
        """What is wrong with the root on the node of a worker, by what that reports; None where nothing is."""
        node = worker["node"]
        if node in self.seen:
            return None
        if (wrong := worker["root"]) is None and not self._sees(node):
            wrong = "what it writes there is not seen here"
        if wrong is None:
            self.seen.add(node)
            return None
        return f"node {worker['host']} ({node[:12]}): root {self.root}: {wrong}; {SHARE}"

    def _sees(self, node: str) -> bool:
        until = time.monotonic() + SIGHT_SECONDS
        while not _says(self.storage.read, _answer(self.sign, node), node):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def close(self) -> None:
        for name in self.storage.names(self.folder):
            self.storage.delete(f"{self.folder}/{name}")


def answer_sign(root: str, sign: str, node: str) -> str | None:
    """A node's side: writes its answer; returns what is wrong with the root there, None where nothing is."""
    storage = open_storage(root)
    try:
        if not _says(storage.read, sign, sign):
            return "what the study's process wrote there is not seen on that node"
        storage.replace(_answer(sign, node), node.encode())
    except OSError as error:
        return error.strerror or first_line(error)
    return None


def _says(read: Any, path: str, content: str) -> bool:
    try:
        return bool(read(path) == content.encode())
    except FileNotFoundError:
        return False


def _answer(sign: str, node: str) -> str:
    return f"{sign}-{node}"
