"""Benchmarks, one question a file; README.md has the rules, `python -m benchmarks` the list."""
