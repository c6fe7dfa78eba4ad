"""Weights: where they come from, how they are laid out in files, and which of them makes which parameter.

Nothing is imported here, so that `ktc.weights.formats` stays free of numpy and torch: see README.md for the
modules.
"""
