"""The .kt language: grammar, parser, checker, diagnostics, formatter and the std rule libraries."""
