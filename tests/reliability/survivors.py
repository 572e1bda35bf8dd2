"""Mutants that no test can notice, and why: what the campaign of mutants counts as explained."""

__all__ = ["EQUIVALENT"]

EQUIVALENT: dict[str, str] = {}
"""By path, line before and line after."""
