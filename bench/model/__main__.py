"""``python -m bench.model``."""

from bench.model.measure import main

main("model")
