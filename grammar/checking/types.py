"""Types of expressions, as far as they can be known without a model; reports what cannot be right.

Types are words: "int", "float", "number" (either), "bool", "str", "list", "device", "group", "symbol",
"call", "sites", "tensor", "config" and "any" (unknown until the model is).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ktc.grammar import tree
from ktc.grammar.checking.scope import RESERVED, Scope
from ktc.grammar.diagnostics import Diagnostic, Fix, Label
from ktc.grammar.formats import FORMATS
from ktc.grammar.functions import FUNCTIONS
from ktc.grammar.values import DTYPES

NUMERIC = frozenset({"int", "float", "number", "any"})
SYMBOLS = frozenset(FORMATS) | frozenset(DTYPES.values()) | frozenset(DTYPES) | {"auto", "none"}
_WORDS = {
    "int": "an int",
    "float": "a float",
    "number": "a number",
    "bool": "true or false",
    "str": "a string",
    "list": "a list",
    "device": "a device",
    "group": "a group of devices",
    "symbol": "a name",
    "call": "a name with options",
    "sites": "a set of modules",
    "tensor": "a tensor",
    "config": "the model's configuration",
}


def words(kind: str) -> str:
    """A type in a sentence."""
    return _WORDS.get(kind, kind)


def fits(kind: str, wanted: str) -> bool:
    """Whether a value of type `kind` can stand where `wanted` is asked for."""
    if "any" in (kind, wanted) or kind == wanted:
        return True
    if wanted in ("number", "float"):
        return kind in NUMERIC
    return wanted == "int" and kind == "number"


class Typer:
    """Types the expressions of one context.

    Args:
        scope: the program's names, and where problems go.
        context: one of the contexts of `functions`.
        extra: more names and their types (the captures of a rewrite).
        free: names that need no declaration may stand for themselves (options of a kernel).
    """

    def __init__(
        self, scope: Scope, context: str, extra: Mapping[str, str] | None = None, *, free: bool = False
    ) -> None:
        self._scope = scope
        self._context = context
        self._names = {**scope.names(context), **(extra or {})}
        self._free = free

    def check(self, expr: tree.Expr, wanted: str, what: str) -> bool:
        """Whether an expression has the wanted type; reports it otherwise. `what` begins the message."""
        kind = self.infer(expr)
        if fits(kind, wanted):
            return True
        self._scope.error("KT105", f"{what} is {words(wanted)}", expr.span, f"this is {words(kind)}")
        return False

    def infer(self, expr: tree.Expr) -> str:
        """The type of an expression; "any" once something in it was reported."""
        return _METHODS[type(expr)](self, expr)

    def _name(self, expr: tree.Name) -> str:
        first, _, rest = expr.id.partition(".")
        self._scope.used.add(first)
        kind = self._names.get(first)
        if kind == "config" and rest:
            return "any"
        if kind is not None and not rest:
            return kind
        if kind is not None:
            self._scope.error("KT102", f"`{first}` has no fields", expr.span, f"this is {words(kind)}")
            return "any"
        if self._free or expr.id in SYMBOLS:
            return "symbol"
        self._unknown(expr)
        return "any"

    def _unknown(self, expr: tree.Name) -> None:
        if expr.id in self._scope.lets and self._scope.lets[expr.id].selector is not None:
            fix = Fix(f"did you mean `@{expr.id}`?", expr.span, f"@{expr.id}")
            self._scope.error("KT102", f"`{expr.id}` names a set of modules", expr.span, fix=fix)
        elif expr.id in FUNCTIONS:
            self._scope.error("KT102", f"`{expr.id}` is a function", expr.span, f"write `{expr.id}(...)`")
        elif expr.id in self._scope.spans:
            self._scope.error("KT102", f"`{expr.id}` cannot be used here", expr.span)
        elif expr.id.split(".")[0] in RESERVED:
            text = "nothing gives it a value in this place"
            self._scope.error("KT102", f"`{expr.id}` cannot be used here", expr.span, text)
        elif expr.id in self._scope.later:
            labels = (
                Label(expr.span, "used here"),
                Label(self._scope.later[expr.id], "declared further down"),
            )
            message = f"`{expr.id}` is used before it is declared"
            self._scope.diagnostics.append(Diagnostic("KT102", message, labels))
        else:
            self._scope.unknown("KT102", "name", expr.id, [*self._names, *SYMBOLS], expr.span)

    def _list(self, expr: tree.ListExpr) -> str:
        for item in expr.items:
            self.infer(item)
        return "list"

    def _set(self, expr: tree.SetRef) -> str:
        check_set(self._scope, expr.name, expr.span)
        return "sites"

    def _apply(self, expr: tree.Apply) -> str:
        name = expr.function.id
        function = FUNCTIONS.get(name)
        if function is None:
            if not self._free or name in self._names:
                known = [f for f, entry in FUNCTIONS.items() if self._context in entry.contexts]
                self._scope.unknown("KT108", "function", name, known, expr.function.span, "functions here")
            for argument in (*expr.args, *(k.value for k in expr.keywords)):
                self.infer(argument)
            return "any"
        if self._context not in function.contexts:
            where = {"phase": "a phase", "rule": "a rule", "rewrite": "a rewrite", "assert": "an assert"}
            places = sorted(where[c] for c in function.contexts if c in where)
            text = "it has a meaning only in " + " and ".join(places)
            self._scope.error("KT108", f"`{name}` cannot be used here", expr.function.span, text)
            return "any"
        for keyword in expr.keywords:
            self._scope.error("KT109", f"`{name}` takes no options", keyword.span)
        few = len(expr.args) < len(function.params)
        if few or (len(expr.args) > len(function.params) and not function.variadic):
            count = f"{len(function.params)} argument" + ("s" if len(function.params) > 1 else "")
            least = "at least " if function.variadic else ""
            self._scope.error("KT109", f"`{name}` takes {least}{count}", expr.span, function.help)
            return function.result
        for index, argument in enumerate(expr.args):
            self._argument(name, function.params[min(index, len(function.params) - 1)], argument)
        return function.result

    def _argument(self, name: str, wanted: str, argument: tree.Expr) -> None:
        kind = self.infer(argument)
        accepted = {
            "device": {"device", "group"},
            "number": {*NUMERIC, "list"},
            "list": {"list", "group"},
        }.get(wanted, {wanted})
        if kind not in accepted and kind != "any":
            self._scope.error(
                "KT109", f"`{name}` takes {words(wanted)}", argument.span, f"this is {words(kind)}"
            )

    def _index(self, expr: tree.Index) -> str:
        base = self.infer(expr.base)
        self.check(expr.index, "int", "an index")
        if base == "group":
            return "device"
        if base not in ("list", "any"):
            self._scope.error(
                "KT105",
                "only a list or a group of devices is indexed",
                expr.base.span,
                f"this is {words(base)}",
            )
        return "any"

    def _unary(self, expr: tree.Unary) -> str:
        if expr.op == "not":
            self.check(expr.operand, "bool", "the operand of `not`")
            return "bool"
        kind = self.infer(expr.operand)
        if kind not in NUMERIC:
            self._scope.error(
                "KT105", "the operand of `-` is a number", expr.operand.span, f"this is {words(kind)}"
            )
            return "any"
        return kind

    def _binary(self, expr: tree.Binary) -> str:
        if expr.op in ("and", "or"):
            for side in (expr.left, expr.right):
                self.check(side, "bool", f"a side of `{expr.op}`")
            return "bool"
        left, right = self.infer(expr.left), self.infer(expr.right)
        if expr.op in ("==", "!="):
            return self._equality(expr, left, right)
        ordered = expr.op in ("<", "<=", ">", ">=")
        for side, kind in ((expr.left, left), (expr.right, right)):
            if kind not in NUMERIC and not (ordered and kind == "list"):
                self._scope.error(
                    "KT105", f"a side of `{expr.op}` is a number", side.span, f"this is {words(kind)}"
                )
                return "bool" if ordered else "any"
        if ordered:
            return "bool"
        if expr.op == "/":
            return "float"
        return next((kind for kind in ("any", "float", "number") if kind in (left, right)), "int")

    def _equality(self, expr: tree.Binary, left: str, right: str) -> str:
        """Values of types that can never be equal are compared by mistake."""
        groups: tuple[Collection[str], ...] = (
            NUMERIC,
            {"str", "symbol", "device"},
            {"bool"},
            {"list"},
            {"group"},
        )
        if "any" not in (left, right) and not any(left in group and right in group for group in groups):
            text = f"{words(left)} and {words(right)}"
            self._scope.error("KT105", "these can never be equal", expr.span, text)
        return "bool"

    def _within(self, expr: tree.Within) -> str:
        item = self.infer(expr.item)
        container = expr.container
        if isinstance(container, tree.RangeExpr):
            if item not in NUMERIC:
                text = f"this is {words(item)}"
                self._scope.error("KT105", "only a number lies in a range", expr.item.span, text)
            self.infer(container)
            return "bool"
        kind = self.infer(container)
        if kind not in ("list", "group", "sites", "any"):
            text = f"this is {words(kind)}"
            self._scope.error("KT105", "`in` needs a list, a range, a group or a set", container.span, text)
        return "bool"

    def _range(self, expr: tree.RangeExpr) -> str:
        for side in (expr.low, expr.high):
            if side is not None:
                self.check(side, "number", "an end of a range")
        check_order(self._scope, expr)
        return "range"


def constant(expr: tree.Expr | None) -> int | float | None:
    """The value of a literal number or size, with its sign; None for anything else."""
    if isinstance(expr, tree.Unary) and expr.op == "-":
        value = constant(expr.operand)
        return None if value is None else -value
    if isinstance(expr, tree.Number):
        return expr.value
    return expr.bytes if isinstance(expr, tree.Size) else None


def check_order(scope: Scope, expr: tree.RangeExpr) -> None:
    """Reports a range of two literals whose low end is above its high end (-1 counts from an end)."""
    low, high = constant(expr.low), constant(expr.high)
    if low is not None and high is not None and low > high and (low < 0) == (high < 0):
        scope.error(
            "KT112", "the range is empty", expr.span, f"{low} is greater than {high}",
            notes=("both ends belong to a range, and the lower one comes first",),
        )  # fmt: skip


def check_set(scope: Scope, name: str, span: tree.Span) -> bool:
    """Whether `@name` is declared so far; reports it otherwise."""
    scope.used.add(name)
    let = scope.lets.get(name)
    if let is not None and let.selector is not None:
        return True
    sets = [n for n, found in scope.lets.items() if found.selector is not None]
    fix = scope.guess(name, sets, span, "@")
    notes = ("a set is declared by `let NAME = match SELECTOR`, above its use",) if fix is None else ()
    scope.error("KT103", f"unknown set `@{name}`", span, notes=notes, fix=fix)
    return False


_METHODS: Mapping[type, Callable[[Typer, tree.Expr], str]] = {
    tree.Name: Typer._name,  # type: ignore[dict-item]
    tree.Number: lambda _, e: "float" if isinstance(e.value, float) else "int",  # type: ignore[union-attr]
    tree.Size: lambda _, e: "int",
    tree.Text: lambda _, e: "str",
    tree.Bool: lambda _, e: "bool",
    tree.ListExpr: Typer._list,  # type: ignore[dict-item]
    tree.SetRef: Typer._set,  # type: ignore[dict-item]
    tree.Apply: Typer._apply,  # type: ignore[dict-item]
    tree.Index: Typer._index,  # type: ignore[dict-item]
    tree.Unary: Typer._unary,  # type: ignore[dict-item]
    tree.Binary: Typer._binary,  # type: ignore[dict-item]
    tree.Within: Typer._within,  # type: ignore[dict-item]
    tree.RangeExpr: Typer._range,  # type: ignore[dict-item]
}
