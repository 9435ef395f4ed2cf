# One command each, from a fresh clone on Debian 12 or later, as root or with sudo.

# Where everything must be able to run, a skipped test is a failure.
test test-fast: export KTASKFS_REQUIRE_ALL := $(if $(CI),1,$(KTASKFS_REQUIRE_ALL))

PREFIX ?= /usr/local

.PHONY: setup lint test-fast test demo bench install uninstall clean

setup: ## install what is missing and make .venv
	@scripts/setup.sh

lint: setup ## style and types
	.venv/bin/ruff check .
	.venv/bin/mypy -p ktaskfs -p bench -p tests

test-fast: lint ## lint, then the tests that need neither root nor a mount nor another machine
	.venv/bin/python -m pytest -m fast

test: lint ## lint, then every test
	.venv/bin/python -m pytest

demo: setup ## the main job, shown with the commands a reader would type
	@scripts/demo.sh

# The benchmarks are the modules that call main("NAME", ...); those that read the results of others come after them.
bench: setup ## install the peers, measure beside them, draw; writes bench/RESULTS.md, bench/results/ and docs/plots/
	@bench/peers.sh
	files=$$(grep -lE '^ *main\("' bench/*.py bench/*/__main__.py); \
	for each in $$(grep -L '"results"' $$files) $$(grep -l '"results"' $$files); do \
		module=$$(echo $${each%.py} | tr / .) && .venv/bin/python -m $${module%.__main__} || exit; \
	done
	.venv/bin/python -m bench.plots

install: setup ## into PREFIX (/usr/local), and the helpers of mount(8) into /usr/sbin; DESTDIR goes before all paths
	.venv/bin/python packaging/install.py install "$(PREFIX)" "$(DESTDIR)"

uninstall: setup ## remove what install has put there, with the same PREFIX and DESTDIR
	.venv/bin/python packaging/install.py uninstall "$(PREFIX)" "$(DESTDIR)"

clean: ## remove what was built
	rm -rf .venv *.egg-info bench/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
