"""Acceptance criteria as data, and their status out of stored evidence: never typed by hand."""
