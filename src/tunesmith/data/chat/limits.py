"""Limits of time, memory and output for the code of a chat template, which comes with a model and may be anybody's.

Jinja's sandbox keeps a template from files and programs, and lets it loop for ever and fill the memory. Here whatever
can take long or grow is counted before it happens: each step of a loop, each call, filter and operator, and the bytes
of each text and list that is made. No thread, no signal and no other process is needed, so the same limits hold in
workers, notebooks and servers. Templates that stay within the limits render the same text as without them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from itertools import islice
from types import BuiltinMethodType, MethodType, NoneType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from tunesmith.data.chat.budget import CONTAINERS, HELD, OUTPUT, Budget, too_much

MOST_BITS = 2**17  # of a whole number
LARGEST_NUMBER = 100_000  # as a width, a count or a length
SMALL = 256  # characters of a text that is not counted: a step makes no more than one
SLOW = 10_000  # characters, for a filter that is slow on long text
_WIDTH = re.compile(r"[1-9][0-9]{3,}")
_SIZES = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes"})  # methods that take a size
_SPLITS = frozenset({"split", "rsplit", "splitlines"})
_ANY_NUMBER = frozenset({"default", "d", "int", "float", "map", "select", "selectattr", "reject", "rejectattr"})
_CODECS = frozenset({"utf-8", "utf8", "ascii", "latin-1"})  # others can be slow on long text
_GROWING = _SIZES | _SPLITS | {"encode", "decode", "replace", "translate", "join"}
_METHODS = (BuiltinMethodType, MethodType)
_SMALL_KINDS = (bool, int, float, NoneType)


class CountingGenerator(CodeGenerator):
    """Compiles a template so that loops, joined texts, lists and slices are counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bodies: set[int] = set()
        self._loop_tests: set[int] = set()

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        self._bodies.add(id(node.body))
        if node.test is not None:
            self._loop_tests.add(id(node.test))
        super().visit_For(node, frame)

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if id(node) not in self._loop_tests:
            return super().visit(node, *args, **kwargs)
        self._loop_tests.discard(id(node))
        self.write("environment.compared(")
        super().visit(node, *args, **kwargs)
        self.write(")")

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        if id(nodes) in self._bodies:
            self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._around("environment.joined((", node.nodes, frame, "))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._held(node, node.items, super().visit_List, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._held(node, [part for pair in node.items for part in (pair.key, pair.value)], super().visit_Dict, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self._held(node, node.items if node.ctx == "load" else (), super().visit_Tuple, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        sides = [node.expr, *(op.expr for op in node.ops)]
        searches = any(op.op in ("in", "notin") for op in node.ops)
        if searches or not any(isinstance(side, nodes.Const) for side in sides):
            self.write("environment.compared")
        super().visit_Compare(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self.write("environment.cut(")
            super().visit_Getitem(node, frame)
            self.write(")")
        else:
            super().visit_Getitem(node, frame)

    def _held(self, node: Any, items: Iterable[nodes.Node], visit: Callable[[Any, Frame], None], frame: Frame) -> None:
        if all(isinstance(item, nodes.Const) for item in items):
            visit(node, frame)
            return
        self.write("environment.held(")
        visit(node, frame)
        self.write(")")

    def _around(self, before: str, items: Iterable[nodes.Node], frame: Frame, behind: str) -> None:
        self.write(before)
        for item in items:
            self.visit(item, frame)
            self.write(", ")
        self.write(behind)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers with a budget. ``budget.begin`` is called before each rendering.

    Nothing is computed while a template is compiled, because the budget of a rendering does not hold there yet.
    """

    code_generator_class = CountingGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_finalized, **options)
        self.budget = Budget()
        self.step = self.budget.step
        self.globals["lipsum"] = self._few(self.globals["lipsum"])
        self.filters = {name: self._filter(name, function) for name, function in self.filters.items()}
        self.tests = {name: self._stepped(function) for name, function in self.tests.items()}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter in place of Jinja's own, with the same limits."""
        self.filters[name] = self._filter(name, function)

    # What compiled templates call.

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """Joins what a template, macro or block has written."""
        if type(parts) is list:  # of a macro
            size = sum(map(len, parts))
            if size > SMALL:
                self.budget.output(size)
                self.budget.take(size)
            return "".join(parts)
        found: list[str] = []
        size, pieces = 0, iter(parts)
        while some := list(islice(pieces, 1000)):
            found += some
            size += sum(map(len, some))
            if size > OUTPUT:
                self.budget.output(size)
        self.budget.take(size)
        return "".join(found)

    def joined(self, values: tuple[Any, ...]) -> str:
        """The operator ``~``."""
        self.budget.step()
        for value in values:
            self.budget.take(len(value) if type(value) is str and len(value) < SMALL else self._size(value))
        return str_join(values)

    def held(self, value: Any) -> Any:
        """A list, tuple or mapping that the template has made."""
        self.budget.step()
        self.budget.take(self.budget.held(value))
        return value

    def cut(self, value: Any) -> Any:
        """A slice."""
        self.budget.step()
        self.budget.take(sys.getsizeof(value))
        return value

    def compared(self, value: bool) -> bool:
        """The result of a comparison that may have taken long."""
        self.budget.step()
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make something large."""
        if operator == "+":
            if type(left) is type(right) is str and len(left) + len(right) < SMALL:
                return left + right
            self.budget.step()
            if isinstance(left, (str, bytes, list, tuple)):
                self.budget.take(sys.getsizeof(left) + sys.getsizeof(right))
                result = left + right
                if not isinstance(left, (str, bytes)):
                    self.budget.held(result)
                return result
            return left + right
        self.budget.step()
        if operator == "*":
            self._multiplied(left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MOST_BITS:
                raise too_much(f"computes a number of more than {MOST_BITS} bits")
        elif isinstance(left, (str, bytes)):
            self._percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a function, a macro or a method."""
        __self.step()
        if type(__obj) is BuiltinMethodType and isinstance(__obj.__self__, (str, bytes, int)):
            kwargs.pop("_loop_vars", None)  # which Jinja passes to every call
            kwargs.pop("_block_vars", None)
            if __obj.__name__ in _GROWING:
                args = __self._method(__obj.__self__, __obj.__name__, args, kwargs)
            result = __obj(*args, **kwargs)  # Jinja's own look at it would find nothing
        else:
            if type(__obj) is MethodType and isinstance(__obj.__self__, str):  # of text that is marked safe
                args = __self._method(__obj.__self__, __obj.__name__, args, kwargs)
            result = super().call(__context, __obj, *args, **kwargs)
        if type(result) not in _SMALL_KINDS:
            __self._count(result)
        return result

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` with its fields counted; that of text that is marked safe has no use here."""
        if type(value) not in _METHODS:
            return None
        wrapped = super().wrap_str_format(value)
        if wrapped is None or type(value.__self__) is not str:
            return wrapped
        text, by_mapping = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            if by_mapping and len(args) == 1 and not kwargs:
                args, kwargs = (), args[0]
            elif by_mapping:
                return wrapped(*args, **kwargs)  # which says what is wrong
            return _CountingFormatter(self).vformat(text, args, kwargs)

        return wraps(wrapped)(formatted)

    # Sizes.

    def _size(self, value: Any) -> int:
        return self.budget.held(value) if isinstance(value, CONTAINERS) else sys.getsizeof(value)

    def _count(self, result: Any) -> None:
        kind = type(result)  # isinstance would ask a namespace for its class, which is slow
        if issubclass(kind, (str, bytes)):
            if len(result) > SMALL:
                self.budget.take(sys.getsizeof(result))
        elif issubclass(kind, CONTAINERS):
            self.budget.take(sys.getsizeof(result))
            self.budget.held(result)

    def _multiplied(self, left: Any, right: Any) -> None:
        if isinstance(right, (str, bytes, list, tuple)):
            left, right = right, left
        if not isinstance(right, int):
            return
        if isinstance(left, int):
            if left.bit_length() + right.bit_length() > MOST_BITS:
                raise too_much(f"computes a number of more than {MOST_BITS} bits")
        elif isinstance(left, (str, bytes)):
            self.budget.take(sys.getsizeof(left) + len(left) * max(right, 0))
        elif isinstance(left, (list, tuple)):
            size = self.budget.held(left) * max(right, 0)
            self.budget.take(size)
            if size > HELD:
                raise too_much(f"makes a list of more than {HELD / 1e6:,.0f} MB")

    def _percent(self, text: str | bytes, values: Any) -> None:
        if isinstance(text, bytes):
            raise too_much("formats bytes")
        self._refuse_numbers(_widths(text))
        star = _largest(values) if "*" in text else 0
        self._refuse_numbers([star])
        self.budget.take(len(text) + text.count("%") * (self._size(values) + max([star, *_widths(text)])))

    # Methods and filters.

    def _method(self, owner: Any, name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Counts what a method of a text or number will make. Gives the arguments, a list in place of an iterator."""
        first: Any = (*args, *named.values(), None)[0]
        if name in _SIZES:
            self._refuse_numbers([*args, *named.values()])
            if name == "expandtabs":
                each = first if isinstance(first, int) else 8
                self.budget.take(owner.count("\t" if isinstance(owner, str) else b"\t") * each)
        elif name in ("encode", "decode"):
            if first is not None and first not in _CODECS and len(owner) > SLOW:
                raise too_much(f"encodes more than {SLOW:,} characters as {str(first)[:20]}")
        elif name in _SPLITS:
            count = owner.count(first) if isinstance(first, (str, bytes)) and first else len(owner) // 2
            self.budget.take(64 * count)
        elif name == "replace" and len(args) > 1:
            self._replaced(owner, *args[:2])
        elif name == "translate":
            values = [len(each) if isinstance(each, str) else 1 for each in first.values()] if args else []
            self.budget.take(len(owner) * max(values, default=1))
        elif name == "join" and args and not isinstance(first, (str, bytes)):
            listed = list(first)
            self.budget.take(len(owner) * len(listed) + self.budget.held(listed))
            return listed, *args[1:]
        elif name == "join" and args:
            self.budget.take(len(owner) * len(first))
        return args

    def _replaced(self, text: Any, old: Any, new: Any) -> None:
        if type(text) is type(old) is type(new):
            self.budget.take(sys.getsizeof(text) + text.count(old) * len(new))

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 0 if getattr(function, "jinja_pass_arg", None) is None else 1  # behind the context that Jinja passes
        alone, before, counts, step = first + 1, _BEFORE.get(name), name not in _ANY_NUMBER, self.step

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            step()
            if kwargs or len(args) > alone or before is not None:
                value, given = args[first] if len(args) > first else None, (*args[alone:], *kwargs.values())
                if counts:
                    self._refuse_numbers(given)
                if before is not None:
                    value = before(self, value, given, kwargs)
                    args = (*args[:first], value, *args[alone:])
            result = function(*args, **kwargs)
            if type(result) is not str or len(result) > SMALL:
                self._count(result)
            return result

        return counted

    def _stepped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            return function(*args, **kwargs)

        return counted

    def _few(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
            if n * max > LARGEST_NUMBER:
                raise too_much(f"asks for more than {LARGEST_NUMBER:,} words")
            return function(n, html, min, max)

        return counted

    def _refuse_numbers(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                raise too_much(f"asks for a width, count or length of more than {LARGEST_NUMBER:,}")


class _CountingFormatter(SandboxedFormatter):
    def __init__(self, environment: LimitedEnvironment) -> None:
        super().__init__(environment)
        self._counting = environment

    def format_field(self, value: Any, format_spec: str) -> str:
        self._counting._refuse_numbers(_widths(format_spec))
        self._counting.step()
        result = super().format_field(value, format_spec)
        self._counting._count(result)
        return result


def _widths(text: str) -> list[int]:
    """The large numbers in the text of a format, such as 99999 in ``%99999d``."""
    return [int(found) if len(found) < 20 else 10**20 for found in _WIDTH.findall(text)]


def _largest(values: Any) -> int:
    found = values if isinstance(values, tuple) else (values,)
    return max((abs(each) for each in found if isinstance(each, int)), default=0)


@pass_context
def _finalized(context: Context, value: Any) -> Any:
    """What is written: counted, and left as it is. Jinja makes it a text."""
    if type(value) is str or type(value) is int:
        return value
    environment = context.environment
    assert isinstance(environment, LimitedEnvironment)
    environment.step()
    if isinstance(value, CONTAINERS):
        environment.budget.take(environment.budget.held(value))
    return value


# What some filters will make, counted before they do. Each gives the value back, a list in place of an iterator.
_Before = Callable[[LimitedEnvironment, Any, tuple[Any, ...], Mapping[str, Any]], Any]


def _before_replace(environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Any) -> Any:
    if len(given) > 1:
        environment._replaced(str(value), str(given[0]), str(given[1]))
    return value


def _before_join(environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Any) -> Any:
    value = value if isinstance(value, (str, *CONTAINERS)) else list(value)
    between = max((len(each) for each in given if isinstance(each, str)), default=0)
    environment.budget.take(len(value) * between + environment._size(value))
    return value


def _before_indent(environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Any) -> Any:
    width = max((len(each) if isinstance(each, str) else int(each) for each in given), default=4)
    environment.budget.take(len(str(value)) + (str(value).count("\n") + 1) * width)
    return value


def _before_tojson(
    environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Mapping[str, Any]
) -> Any:
    texts = sum(len(each) for each in given if isinstance(each, str))
    numbers = sum(each for each in given if isinstance(each, int))
    separators = sum(environment._size(each) for each in given if isinstance(each, (list, tuple)))
    environment.budget.take(environment._size(value) * (1 + texts + numbers + separators // 32))
    return value


def _before_format(
    environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Mapping[str, Any]
) -> Any:
    environment._percent(str(value), dict(named) or given)
    return value


def _before_sum(environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Any) -> Any:
    if any(isinstance(each, (list, tuple, bytes)) for each in given):
        value = list(value)
        environment.budget.take(len(value) * environment._size(value) // 2)
    return value


def _slow(environment: LimitedEnvironment, value: Any, given: tuple[Any, ...], named: Any) -> Any:
    if environment._size(value) > 4 * SLOW and len(str(value)) > SLOW:
        raise too_much(f"uses a filter on more than {SLOW:,} characters that is slow on long text")
    return value


_BEFORE: Mapping[str, _Before] = {
    "replace": _before_replace,
    "join": _before_join,
    "indent": _before_indent,
    "tojson": _before_tojson,
    "format": _before_format,
    "sum": _before_sum,
    "urlize": _slow,
    "wordwrap": _slow,
    "striptags": _slow,
    "pprint": _slow,
}
