"""Hypothesis profiles: `ci` is small and repeatable; `pytest --hypothesis-profile=deep` searches on."""

from hypothesis import settings

settings.register_profile("ci", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=1000, deadline=None)
settings.load_profile("ci")
