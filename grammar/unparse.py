"""Writes expressions, selectors and op calls back as text, with the fewest parentheses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ktc.grammar import tree

# How tightly each operator binds; an operand of lower rank is put in parentheses.
OR, AND, NOT, COMPARE, SUM, TERM, UNARY, POSTFIX = range(1, 9)
_RANK = {"or": OR, "and": AND, "+": SUM, "-": SUM, "*": TERM, "/": TERM, "//": TERM, "%": TERM}
STEP = 2  # columns of one level of indentation


class Unparser:
    """Writes nodes of one text.

    Args:
        text: the source: literals are written as they were (`1_000`, `0.10`).
        width: columns a line may have; a longer call, list or chain of `and`/`or` is broken.
    """

    def __init__(self, text: str, width: int = 100) -> None:
        self._text = text
        self._width = width

    def fit(self, node: Any, column: int, indent: int) -> str:
        """A node on one line if it ends before the width when begun at `column`, else broken at its outermost
        list; continuation lines are indented by `indent` and more."""
        flat = self.flat(node)
        if column + len(flat) <= self._width:
            return flat
        return self._broken(node, indent) or flat

    def _broken(self, node: Any, indent: int) -> str | None:
        if isinstance(node, tree.BoolSelector):
            rank = OR if node.op == "or" else AND
            parts = [self._selector(part, rank + 1) for part in node.operands]
            return f"\n{' ' * (indent + STEP)}{node.op} ".join(parts)
        if isinstance(node, tree.Binary) and node.op in ("and", "or"):
            rank = _RANK[node.op]
            left = self._chain(node, node.op)
            parts = [self._ranked(part, rank if i == 0 else rank + 1) for i, part in enumerate(left)]
            return f"\n{' ' * (indent + STEP)}{node.op} ".join(parts)
        opened = self._opened(node)
        if opened is None:
            return None
        head, parts, tail = opened
        inner = indent + STEP
        lines = [" " * inner + self._argument(part, inner) + "," for part in parts]
        return "\n".join([head, *lines, " " * indent + tail])

    def _chain(self, node: tree.Expr, op: str) -> list[tree.Expr]:
        if isinstance(node, tree.Binary) and node.op == op:
            return [*self._chain(node.left, op), node.right]
        return [node]

    def _opened(self, node: Any) -> tuple[str, list[Any], str] | None:
        """What begins, fills and ends a bracketed list."""
        if isinstance(node, tree.Apply) and (node.args or node.keywords):
            return node.function.id + "(", [*node.args, *node.keywords], ")"
        if isinstance(node, tree.OpCall) and (node.operands or node.attributes):
            return node.op + "(", [*node.operands, *node.attributes], ")"
        if isinstance(node, tree.ListExpr) and node.items:
            return "[", list(node.items), "]"
        return None

    def _argument(self, part: Any, indent: int) -> str:
        if isinstance(part, tree.Keyword | tree.Attribute):
            head = f"{part.name} = "
            return head + self.fit(part.value, indent + len(head), indent)
        return self.fit(part, indent, indent)

    def flat(self, node: Any) -> str:
        """A node on one line."""
        if isinstance(node, tree.PathSelector | tree.RegexSelector | tree.NamedSelector):
            return self._selector(node, OR)
        if isinstance(node, tree.NotSelector | tree.BoolSelector):
            return self._selector(node, OR)
        return self._ranked(node, OR)

    # --- expressions -------------------------------------------------------------------------------
    def _ranked(self, node: Any, rank: int) -> str:
        text, own = _WRITERS[type(node)](self, node)
        return f"({text})" if own < rank else text

    def _literal(self, node: tree.Expr) -> tuple[str, int]:
        return "".join(self._text[node.span.start : node.span.end].split()), POSTFIX

    def _name(self, node: tree.Name) -> tuple[str, int]:
        return node.id, POSTFIX

    def _string(self, node: tree.Text) -> tuple[str, int]:
        return f'"{node.value}"', POSTFIX

    def _set(self, node: tree.SetRef) -> tuple[str, int]:
        return f"@{node.name}", POSTFIX

    def _list(self, node: tree.ListExpr) -> tuple[str, int]:
        return f"[{self._joined(node.items)}]", POSTFIX

    def _apply(self, node: tree.Apply) -> tuple[str, int]:
        return f"{node.function.id}({self._joined([*node.args, *node.keywords])})", POSTFIX

    def _joined(self, parts: Sequence[Any]) -> str:
        return ", ".join(self._ranked(part, OR) for part in parts)

    def _keyword(self, node: tree.Keyword | tree.Attribute) -> tuple[str, int]:
        return f"{node.name} = {self._ranked(node.value, OR)}", POSTFIX

    def _index(self, node: tree.Index) -> tuple[str, int]:
        return f"{self._ranked(node.base, POSTFIX)}[{self._ranked(node.index, OR)}]", POSTFIX

    def _unary(self, node: tree.Unary) -> tuple[str, int]:
        if node.op == "not":
            return f"not {self._ranked(node.operand, NOT)}", NOT
        return f"-{self._ranked(node.operand, UNARY)}", UNARY

    def _binary(self, node: tree.Binary) -> tuple[str, int]:
        rank = _RANK.get(node.op)
        if rank is None:
            return f"{self._ranked(node.left, SUM)} {node.op} {self._ranked(node.right, SUM)}", COMPARE
        return f"{self._ranked(node.left, rank)} {node.op} {self._ranked(node.right, rank + 1)}", rank

    def _within(self, node: tree.Within) -> tuple[str, int]:
        return f"{self._ranked(node.item, SUM)} in {self._ranked(node.container, SUM)}", COMPARE

    def _range(self, node: tree.RangeExpr) -> tuple[str, int]:
        """`3..17`; with blanks around the dots where an end is more than a word."""
        ends = [side for side in (node.low, node.high) if side is not None]
        gap = "" if all(isinstance(side, tree.Number | tree.Name | tree.Size) for side in ends) else " "
        low = "" if node.low is None else self._ranked(node.low, SUM) + gap
        high = "" if node.high is None else gap + self._ranked(node.high, SUM)
        return f"{low}..{high}", POSTFIX

    # --- rewrites ----------------------------------------------------------------------------------
    def _capture(self, node: tree.Capture) -> tuple[str, int]:
        if node.type is None:
            return node.name, POSTFIX
        dims = "" if node.type.dims is None else f"[{', '.join(map(str, node.type.dims))}]"
        return f"{node.name}: {node.type.dtype}{dims}", POSTFIX

    def _call(self, node: tree.OpCall) -> tuple[str, int]:
        return f"{node.op}({self._joined([*node.operands, *node.attributes])})", POSTFIX

    # --- selectors ---------------------------------------------------------------------------------
    def _selector(self, node: tree.Selector, rank: int) -> str:
        if isinstance(node, tree.PathSelector):
            path = ".".join(self._segment(segment) for segment in node.segments)
            return path if node.class_name is None else f"{path}: {node.class_name.id}"
        if isinstance(node, tree.RegexSelector):
            return f're"{node.pattern}"'
        if isinstance(node, tree.NamedSelector):
            return f"@{node.name}"
        if isinstance(node, tree.NotSelector):
            return self._grouped(f"not {self._selector(node.operand, NOT)}", NOT, rank)
        own = OR if node.op == "or" else AND
        return self._grouped(
            f" {node.op} ".join(self._selector(part, own + 1) for part in node.operands), own, rank
        )

    def _grouped(self, text: str, own: int, rank: int) -> str:
        return f"({text})" if own < rank else text

    def _segment(self, node: tree.Segment) -> str:
        return node.text if node.index is None else f"{node.text}[{self._ranked(node.index, OR)}]"


_WRITERS: Mapping[type, Callable[[Unparser, Any], tuple[str, int]]] = {
    tree.Name: Unparser._name,
    tree.Number: Unparser._literal,
    tree.Size: Unparser._literal,
    tree.Text: Unparser._string,
    tree.Bool: Unparser._literal,
    tree.ListExpr: Unparser._list,
    tree.Keyword: Unparser._keyword,
    tree.Attribute: Unparser._keyword,
    tree.Apply: Unparser._apply,
    tree.Index: Unparser._index,
    tree.Unary: Unparser._unary,
    tree.Binary: Unparser._binary,
    tree.RangeExpr: Unparser._range,
    tree.Within: Unparser._within,
    tree.SetRef: Unparser._set,
    tree.Capture: Unparser._capture,
    tree.OpCall: Unparser._call,
}
