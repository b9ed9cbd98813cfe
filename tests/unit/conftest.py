"""Settings of hypothesis: the same examples in each run, and no limit of time for one, which a loaded machine exceeds."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("steady")
