"""Graph passes, one a file; README.md gives their order."""
