"""Measurements of terse-aug. Each module is a command: ``python -m benchmarks.composite --json results.json``."""
