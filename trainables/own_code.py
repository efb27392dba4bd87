"""A user's code: the Python files that a space names, with those beside them that they import; read once, run anywhere.

What was read travels as text to every process that needs it, so that all run the same, whatever becomes of the files
meanwhile. Its digests are in the keys of the stages that use it. Nothing is ever read from a root.
"""

import ast
import hashlib
import importlib
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType

from takd.search_spaces import InputError
from takd.search_spaces.registry import PLUGINS, TABLES, blamed, importing, know_files, know_package, shown_file

# Their decorators fill the tables with what takd has.
BUILT_IN = (
    "takd.trainables.datasets.built_in",
    "takd.trainables.models.families",
    "takd.trainables.training.views",
    "takd.trainables.training.losses",
    "takd.trainables.training.methods.table",
    "takd.trainables.training.lanes",
    "takd.trainables.training.scores",
    "takd.trainables.training.schedules",
)

log = logging.getLogger("takd")


@dataclass(frozen=True)
class Module:
    """One file as it was read. A folder without `__init__.py` is a package without a line."""

    file: str
    source: str
    package: bool


@dataclass(frozen=True)
class Code:
    """The modules by name, and the names of those that a space names."""

    modules: Mapping[str, Module] = field(default_factory=dict)
    named: tuple[str, ...] = ()

    def digest_of(self, module: str) -> str:
        """SHA-256 over a module and those that it imports, itself or through others."""
        found, left = set[str](), [module]
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += _imports(name, self.modules[name], self.modules)
        whole = hashlib.sha256()
        for name in sorted(found):
            whole.update(f"{name}\n{hashlib.sha256(self.modules[name].source.encode()).hexdigest()}\n".encode())
        return whole.hexdigest()


NO_CODE = Code()


def read_code(places: Sequence[str]) -> Code:
    """The files and packages at these paths, with what they import from beside them; raises InputError."""
    modules: dict[str, Module] = {}
    named = []
    for place in places:
        path = Path(place)
        name = _name_of(path)
        if name in named:
            raise InputError(f"code: two files are the module {name!r}; rename one of them")
        named.append(name)
        for each, module in _with_imports(name, path.parent):
            known = modules.setdefault(each, module)
            if known != module:
                raise InputError(
                    f"code: {shown_file(known.file)} and {shown_file(module.file)} are both the module {each!r}; "
                    "rename one of them"
                )
    return Code(modules, tuple(named))


def _name_of(path: Path) -> str:
    """The module's; raises InputError where there is none at the path."""
    place = shown_file(str(path))
    if path.is_dir() and not (path / "__init__.py").is_file():
        raise InputError(f"code: {place} has no __init__.py; expected a Python file or a package's folder")
    if not path.is_dir() and (path.suffix != ".py" or not path.is_file()):
        what = "is no Python file" if path.exists() else "does not exist"
        raise InputError(f"code: {place} {what}; expected a Python file or a package's folder, relative to the space")
    name = path.name if path.is_dir() else path.stem
    if name in sys.stdlib_module_names or name in ("takd", "torch") or "." in name:
        raise InputError(f"code: {place} can't be the module {name!r}, which is another's; rename it")
    return name


def _with_imports(name: str, folder: Path) -> Iterator[tuple[str, Module]]:
    """A module of a folder and all that it imports from there, itself or through others."""
    found: dict[str, Module] = {}
    left = [name]
    while left:
        each = left.pop()
        if each in found or (module := _find(folder, each)) is None:
            continue
        found[each] = module
        left += _mentioned(each, module)
    yield from found.items()


def _find(folder: Path, name: str) -> Module | None:
    """The module of that name in a folder; None where it is elsewhere: Python's own, or an installed one."""
    if name.partition(".")[0] in sys.stdlib_module_names or name.partition(".")[0] == "takd":
        return None
    path = folder.joinpath(*name.split("."))
    for file, package in ((path / "__init__.py", True), (path.with_name(f"{path.name}.py"), False)):
        if file.is_file():
            return Module(str(file), _text(file), package)
    if path.is_dir() and any(path.rglob("*.py")):
        return Module(str(path), "", True)
    return None


def _text(file: Path) -> str:
    """With Python's own idea of line ends and encodings."""
    try:
        return importlib.util.decode_source(file.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{shown_file(str(file))}: can't be read: {error}") from None


def _mentioned(name: str, module: Module) -> list[str]:
    """All names that a module's imports may mean, wherever in it they stand, and the packages above them."""
    package = name if module.package else name.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(_parsed(module)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
    whole = [name, *found]
    return [".".join(each.split(".")[:end]) for each in whole for end in range(1, each.count(".") + 2)]


def _imports(name: str, module: Module, modules: Mapping[str, Module]) -> list[str]:
    return [each for each in _mentioned(name, module) if each in modules]


def _parsed(module: Module) -> ast.Module:
    try:
        return ast.parse(module.source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        said = getattr(error, "msg", error)
        raise InputError(f"{shown_file(module.file)}:{line}: is not Python: {said}") from None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports from what was read, before anything that is installed."""

    def __init__(self, code: Code) -> None:
        self.code = code

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        module = self.code.modules.get(name)
        if module is None:
            return None
        spec = ModuleSpec(name, self, origin=module.file, is_package=module.package)
        spec.has_location = True
        return spec

    def get_source(self, fullname: str) -> str:
        return self.code.modules[fullname].source

    def is_package(self, fullname: str) -> bool:
        return self.code.modules[fullname].package

    def get_code(self, fullname: str) -> CodeType:
        module = self.code.modules[fullname]
        return compile(module.source, module.file, "exec", dont_inherit=True)


class _InUse:
    """What this process has imported."""

    code: Code = NO_CODE
    finder: _Finder | None = None
    installed: bool = False  # whether installed packages were asked


def use(code: Code) -> None:
    """Imports a user's code, in place of what was used before; its decorators fill the tables.

    What installed packages offer is there too. Raises InputError with the user's file and line where the code can't be
    imported.
    """
    for name in BUILT_IN:
        importlib.import_module(name)
    if not _InUse.installed:
        _InUse.installed = True
        _use_installed()
    if code == _InUse.code:
        return
    _leave()
    know_files({module.file for module in code.modules.values()})
    _InUse.finder = _Finder(code)
    sys.meta_path.insert(0, _InUse.finder)
    # Who has imported modules of these names before goes on with his.
    others = {name: sys.modules.pop(name) for name in code.modules if name in sys.modules}
    try:
        with importing({name: code.digest_of(name) for name in code.modules}.get):
            for name in code.named:
                _import(name, code)
    except BaseException:
        _leave()
        raise
    finally:
        sys.modules.update(others)
    _InUse.code = code


def _leave() -> None:
    """As if no code had been used."""
    for table in TABLES.values():
        table.forget({module.file for module in _InUse.finder.code.modules.values()} if _InUse.finder else set())
    if _InUse.finder is not None:
        sys.meta_path.remove(_InUse.finder)
        for name in _InUse.finder.code.modules:
            module = sys.modules.get(name)
            if module is not None and getattr(module, "__loader__", None) is _InUse.finder:
                del sys.modules[name]
    _InUse.code, _InUse.finder = NO_CODE, None
    know_files(set())


def _import(name: str, code: Code) -> None:
    try:
        importlib.import_module(name)
    except (KeyboardInterrupt, InputError):
        raise
    except BaseException as error:  # also SystemExit: a script's
        raise blamed(error, shown_file(code.modules[name].file)) from None


def _use_installed() -> None:
    """Imports what installed packages offer; one that fails is said, and left out."""
    for entry in sorted(entry_points(group=PLUGINS), key=lambda entry: (entry.value, entry.name)):
        package = entry.module.partition(".")[0]
        places = _places_of(package)
        digest = _installed_digest(entry, places)
        know_package(places)
        known = sys.modules.get(entry.module)
        try:
            with importing(partial(_digest_in, package, digest)):
                # Decorators keep what is defined while it is imported, so who was imported before is once more.
                importlib.reload(known) if known else importlib.import_module(entry.module)
        except Exception as error:
            log.warning("plugin %s: %s: %s; left out", entry.value, type(error).__name__, error)


def _digest_in(package: str, digest: str, module: str) -> str | None:
    """That of the package, of all modules in it."""
    return digest if module.partition(".")[0] == package else None


def _places_of(package: str) -> list[str]:
    """The folders of an installed package, or the one file that it is."""
    found = importlib.util.find_spec(package)
    if found is None:
        return []
    return list(found.submodule_search_locations or []) or [str(found.origin)]


def _installed_digest(entry: EntryPoint, places: Sequence[str]) -> str:
    """Of every Python file of an installed package, and its version."""
    whole = hashlib.sha256(f"{entry.dist.version if entry.dist else ''}\n".encode())
    for place in map(Path, places):
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            name = file.relative_to(place.parent).as_posix()
            whole.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
