"""Imports a user's function from a named file below a folder, and from nothing else.

`score.py:f` and `metrics/score.py:f` name a file. `score:f` and `metrics.score:f` are short for them. A file may import
others below the same folder, also compiled ones (``.so``), which are recorded as the others are. Byte code is never
read: beside a file it could do something else than the file.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tunesmith.errors import RecipeError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_EXAMPLE = "Write it as FILE.py:FUNCTION, such as score.py:score, with a file below the folder of the recipe."


class FunctionFolder:
    """The files of functions below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._modules: dict[Path, ModuleType] = {}
        self._imported: list[Path] = []

    def files(self) -> dict[str, Path]:
        """What was imported, by the path below the folder."""
        return {str(file.relative_to(self.folder)): file for file in self._imported}

    def function(self, name: str, *, where: str) -> Callable[..., Any]:
        """Imports `file.py:function`. Raises RecipeError if it is not there, or is not a function of the user's."""
        file, attribute = self._file(name, where)
        if file not in self._modules:
            self._modules[file] = self._import(file, name, where)
        found = vars(self._modules[file])
        function = found.get(attribute)
        if not callable(function):
            functions = sorted(key for key, value in found.items() if callable(value) and not key.startswith("_"))
            what = f"{file.name} has no function {attribute!r}"
            raise RecipeError(
                what if function is None else f"{name} is not a function but {type(function).__name__}",
                where=where,
                why=f"{file} has: {', '.join(functions) or 'no function'}.",
                remedy="Correct the name after the colon.",
            )
        if _is_pythons(function):
            raise RecipeError(
                f"{name} is a function of Python itself, which is never a metric",
                where=where,
                why=f"{file} imports it.",
                remedy=f"Write a function of your own into {file.name} that calls it.",
            )
        return function

    def _file(self, name: str, where: str) -> tuple[Path, str]:
        """The file that a name stands for, and the function in it."""
        named, _, attribute = name.rpartition(":")
        of_file = named.endswith(".py")
        if not attribute.isidentifier() or not (of_file or _DOTTED.fullmatch(named)) or "\0" in named:
            raise RecipeError(f"{name!r} does not name a Python function", where=where, remedy=_EXAMPLE)
        first = named.split("." if not of_file else "/")[0]
        if not of_file and first in sys.stdlib_module_names:
            raise RecipeError(
                f"{name} is a function of Python itself, which is never a metric",
                where=where,
                why=f"The module {first} comes with Python.",
                remedy=_EXAMPLE,
            )
        part = Path(named) if of_file else Path(*named.split("."))
        choices = [part] if of_file else [part.with_name(f"{part.name}.py"), part / "__init__.py"]
        for choice in choices:
            file = (self.folder / choice).resolve()
            if choice.is_absolute() or self.folder not in file.parents:
                raise RecipeError(
                    f"The file of the function {name} is not below the folder of the recipe",
                    where=where,
                    why=f"It is {file}; the folder is {self.folder}.",
                    remedy="Copy the file into that folder, and name it from there.",
                )
            if file.is_file():
                return file, attribute
        raise RecipeError(
            f"There is no file {choices[0]} for the function {name}",
            where=where,
            why=f"Functions come from files below {self.folder}.",
            remedy=f"Put {choices[0]} into that folder, or correct the name. For a function of an installed package, "
            "write a file that calls it.",
        )

    def _import(self, file: Path, name: str, where: str) -> ModuleType:
        root = f"_functions_{hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]}"
        top = file.parent
        while (top / "__init__.py").is_file() and top != self.folder:
            top = top.parent
        parts = list(file.relative_to(top).with_suffix("").parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        package = ModuleType(root)
        package.__path__ = [str(top)]
        finder = _Finder(self.folder, top, self._imported.append)
        if not self._modules:  # of an earlier command in this process, whose files may have changed
            for known in [known for known, module in sys.modules.items() if _is_of_functions(module)]:
                del sys.modules[known]
        importlib.invalidate_caches()
        sys.modules[root] = package
        sys.meta_path.insert(0, finder)
        try:
            with _no_byte_code():
                for count in range(1, len(parts)):
                    importlib.import_module(".".join([root, *parts[:count]]))
                return _imported_file(file, ".".join([root, *parts]), self._imported.append)
        except (Exception, SystemExit) as error:  # whatever the user's module raises; a script may end with sys.exit()
            raise RecipeError(
                f"The module of the function {name} cannot be imported",
                where=where,
                why=f"It raised {type(error).__name__}: {error}",
                remedy=lacks_file(error, file) or f"Correct {file}; `python {file}` shows where it fails.",
            ) from error
        finally:
            sys.meta_path.remove(finder)


def lacks_file(error: BaseException, file: str | Path) -> str | None:
    """What to do where a function reads a file that is not there: a run keeps a copy of Python files alone."""
    if not isinstance(error, FileNotFoundError):
        return None
    return (
        f"Put {error.filename or 'that file'} there. A run keeps only the code of its functions: a file that "
        f"they read from beside themselves is put beside {file}."
    )


class _Source(SourceFileLoader):
    """Compiles the source, and tells of its file."""

    def __init__(self, fullname: str, path: str, tell: Callable[[Path], None]) -> None:
        super().__init__(fullname, path)
        self._tell = tell

    def get_code(self, fullname: str) -> CodeType:
        self._tell(Path(self.path).resolve())
        return self.source_to_code(self.get_data(self.path), self.path)


class _Extension(ExtensionFileLoader):
    """Loads compiled code, and tells of its file."""

    def __init__(self, fullname: str, path: str, tell: Callable[[Path], None]) -> None:
        super().__init__(fullname, path)
        self._tell = tell

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Opens the library of a module."""
        self._tell(Path(self.path).resolve())
        return super().create_module(spec)


class _Folder(Loader):
    """A folder of modules, which has no code of its own."""

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing."""


class _Finder(MetaPathFinder):
    """Finds the files below a folder that the functions import, after everything that is installed."""

    def __init__(self, folder: Path, top: Path, tell: Callable[[Path], None]) -> None:
        self.folder, self.top, self._tell = folder, top, tell

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The file of a module below the folder."""
        if path is None:
            if any(finder.find_spec(fullname, None) for finder in sys.meta_path if finder is not self):
                return None
            entries = list(dict.fromkeys([self.top, self.folder]))
        else:
            entries = [each for each in map(Path, path) if {each.resolve(), *each.resolve().parents} & {self.folder}]
        details = [
            (partial(_Source, tell=self._tell), SOURCE_SUFFIXES),
            (partial(_Extension, tell=self._tell), EXTENSION_SUFFIXES),
        ]
        for entry in entries:
            found = FileFinder(str(entry), *details).find_spec(fullname)  # pyright: ignore[reportArgumentType]
            if found is not None and self._stays_inside(found):
                if found.loader is None:  # a folder without __init__.py
                    found.loader = _Folder()
                return found
        if path is not None and entries:  # else Python would look there by itself, and take byte code
            raise ModuleNotFoundError(f"No module named {fullname!r} below {self.folder}", name=fullname)
        return None

    def _stays_inside(self, found: ModuleSpec) -> bool:
        places = [found.origin] if found.loader is not None else list(found.submodule_search_locations or [])
        return all(place is not None and self.folder in Path(place).resolve().parents for place in places)


def _imported_file(file: Path, fullname: str, tell: Callable[[Path], None]) -> ModuleType:
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    loader = _Source(fullname, str(file), tell)
    spec = spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=folders)
    assert spec is not None
    if fullname in sys.modules:  # a package that a part of it imported
        return sys.modules[fullname]
    module = sys.modules[fullname] = module_from_spec(spec)
    loader.exec_module(module)
    return module


def _is_of_functions(module: ModuleType) -> bool:
    return isinstance(getattr(module, "__loader__", None), _Source | _Extension | _Folder)


@contextmanager
def _no_byte_code() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _is_pythons(function: Any) -> bool:
    """Whether a function or class comes with Python: builtins, os, subprocess and the like."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__objclass__", None) or getattr(function, "__self__", None)
    if isinstance(owner, ModuleType):
        owner_of = owner.__name__
    else:
        owner_of = None if owner is None else (owner if isinstance(owner, type) else type(owner)).__module__
    places = [getattr(function, "__module__", None), owner_of]
    return any(str(place).partition(".")[0] in sys.stdlib_module_names for place in places if place)
