"""How often something is expected to match, and how to say it."""

from __future__ import annotations

from ktc.grammar.evaluate import EvaluationError, expected_count
from ktc.grammar.tree import Expect
from ktc.passes.context import Context, fail, no_value


def bounds(expect: Expect | None, context: Context) -> tuple[int, int | None]:
    """(lowest, highest or None) number of matches that `expect` allows; at least one where nothing is written.

    Raises:
        KtError: KT109 when the count has no value.
    """
    try:
        return expected_count(expect, context.env())
    except EvaluationError as error:
        raise fail(no_value(error)) from error


def count_words(low: int, high: int | None) -> str:
    """`58`, `at least 1`, `at most 3`, `2 to 5`."""
    if high is None:
        return f"at least {low}"
    if low == high:
        return str(low)
    return f"at most {high}" if low == 0 else f"{low} to {high}"
