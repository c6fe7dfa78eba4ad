"""Random programs as text: what hypothesis feeds to the parser and the formatter."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = ("gpu", "host", "layer", "layers", "model", "rule", "place", "x", "config.num_experts", "cpu.linear")
GAPS = (" ", "  ", "\n", "\n\n\n", "\t", " # a remark\n", "\n# one\n# two\n")
gap = st.sampled_from(GAPS)
word = st.sampled_from(WORDS)
simple = st.sampled_from(("a", "b", "gpu", "rule", "weights", "any_of"))


def join(*parts: object) -> st.SearchStrategy[str]:
    """Parts (texts or strategies) with a random gap between each two."""
    drawn = [part if isinstance(part, st.SearchStrategy) else st.just(part) for part in parts]
    return st.tuples(*[x for part in drawn for x in (part, gap)]).map("".join)


def listed(items: st.SearchStrategy[str], least: int = 0, most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(items, min_size=least, max_size=most).map(", ".join)


literals = st.sampled_from(
    ("3", "1_000", "0.10", "2e3", "24GiB", "1.5KiB", '"text # not a comment"', "true", "@s")
)
atoms = st.one_of(word, literals)


def _wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    grouped = join("(", inner, ")")
    keyword = join(simple, "=", inner)
    binary = st.sampled_from(("+", "-", "*", "/", "//", "%"))
    return st.one_of(
        join(grouped, binary, grouped),
        join(atoms, binary, atoms, binary, atoms),
        join("-", grouped),
        join(word, "(", listed(st.one_of(inner, keyword)), ")"),
        join(word, "[", inner, "]"),
        join("[", listed(inner), "]"),
        grouped,
    )


sums = st.recursive(atoms, _wider, max_leaves=6)
compared = st.one_of(
    sums,
    join(sums, st.sampled_from(("==", "!=", "<", "<=", ">", ">=")), sums),
    join(sums, "in", sums),
    join(sums, "in", sums, "..", sums),
)
conditions = st.recursive(
    compared,
    lambda inner: st.one_of(
        join("not", "(", inner, ")"),
        join("(", inner, ")", st.sampled_from(("and", "or")), "(", inner, ")"),
        join(compared, "and", compared, "or", compared),
    ),
    max_leaves=4,
)
counts = st.one_of(sums, join(sums, ".."), join(sums, "..", sums), join("..", sums))
spans = st.one_of(st.just("*"), counts)
names = st.sampled_from(("model", "layers", "*", "**", "*_proj", "q*", "match", "3"))
segments = st.one_of(names, join(names, "[", spans, "]"))
paths = st.lists(segments, min_size=1, max_size=4).map(".".join)
selectors = st.recursive(
    st.one_of(paths, join(paths, ":", simple), join("@", simple), st.just('re"a.b#c"')),
    lambda inner: st.one_of(
        join("not", inner), join("(", inner, ")"), join(inner, st.sampled_from(("and", "or")), inner)
    ),
    max_leaves=5,
)
actions = st.tuples(st.sampled_from(("place", "quant", "kernel", "cache")), gap, sums).map("".join)
phases = join("on", simple, "{", st.lists(actions, min_size=1, max_size=2).map("\n".join), "}")
expects = st.one_of(st.just(""), st.just("expect any"), counts.map(lambda count: f"expect {count}"))
wheres = st.one_of(st.just(""), conditions.map(lambda condition: f"where {condition}"))
bodies = st.lists(st.one_of(actions, phases), max_size=3).map(" ".join)
rules = join("rule", simple, "{", "match", selectors, wheres, bodies, expects, "}")
tensors = st.sampled_from(("T", "T[*, d]", "bf16[**]", "T[4, d]"))
operands = st.recursive(
    st.one_of(
        simple, join(simple, ":", tensors), join(simple, "=", st.one_of(simple, literals)), st.just("-3")
    ),
    lambda inner: join("kt.silu(", listed(inner, 1, 2), ")"),
    max_leaves=4,
)
binds = join(listed(simple, 1, 2), "=", "kt.linear(", listed(operands), ")")
blocks = st.lists(binds, min_size=1, max_size=2).map("\n".join)
rewrites = join(
    "rewrite", simple, "{", "pattern", "{", blocks, "}", wheres, "replace", "{", blocks, "}", expects, "}"
)
options = listed(join(simple, "=", sums), 0, 2)
items = st.one_of(
    join("model", "Llama", 'from "a" weights "b"'),
    join("device", simple, "=", st.sampled_from(("cpu", "cuda:0", "cuda:0..3"))),
    join("device", simple, "=", "cpu", "(", options, ")"),
    join("param", simple, ":", "int", "=", conditions, st.sampled_from(("", '"help"'))),
    join("phase", simple, "=", conditions),
    join("let", simple, "=", conditions),
    join("let", simple, "= match", selectors),
    join('include "a.kt"'),
    join("import a.b"),
    join("assert", conditions, st.sampled_from(("", ', "hint"'))),
    rules,
    rewrites,
)
programs = st.lists(st.tuples(gap, items), max_size=4).map(
    lambda found: "\n".join("".join(pair) for pair in found)
)
