"""``python -m bench.model``: run it after the others, it reads their "results"."""

from bench.model.measure import main

main("model")
