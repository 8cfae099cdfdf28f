"""Verbs: words in, exit code out; the only code that prints."""
