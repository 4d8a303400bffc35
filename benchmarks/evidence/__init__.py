"""Evidence: which acceleration helps where. ``python -m benchmarks.evidence.run --help``."""
