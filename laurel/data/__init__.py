"""Rows: where they come from, their formats, generated verifiable tasks, splits."""
