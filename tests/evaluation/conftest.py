"""Features come from images, and reading these takes the extra [train]; the measures need NumPy and torch only."""

from __future__ import annotations

from tests.test_extras import missing_packages

if missing_packages():
    collect_ignore = ["test_features.py", "test_inception.py", "test_ranks.py"]
