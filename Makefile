# One command each, from a fresh clone on Debian 12 or later, as root or with sudo.

# Where everything must be able to run, a skipped test is a failure.
test test-fast: export KTASKFS_REQUIRE_ALL := $(if $(CI),1,$(KTASKFS_REQUIRE_ALL))

# Tests and benchmarks start many interpreters, each of which would otherwise compile the program anew.
unexport PYTHONDONTWRITEBYTECODE

PREFIX ?= /usr/local
# 0: one process runs all. 2: of `make test`, one runs the tests that wait for other machines, one runs all others.
TEST_PROCESSES ?= 2

.PHONY: setup program lint test-fast test demo bench docs install uninstall deb versions release clean

setup: ## install the dependencies of the program and its tests, and make .venv
	@scripts/setup.sh tests

program: ## install the dependencies of the program; remove build dependencies afterwards
	@scripts/setup.sh program

lint: setup ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy -p ktaskfs -p bench -p tests
	for each in docs/*.py docs/*/*.py packaging/*.py; do .venv/bin/mypy --no-error-summary $$each || exit; done

test-fast: lint ## lint, then the tests that need neither root nor a mount nor another machine
	.venv/bin/python -m pytest -m fast -n $(TEST_PROCESSES) --dist loadfile

test: lint ## lint, then every test; TEST_PROCESSES=0 runs them in one process
	.venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadscope

demo: program ## show the main job, with its commands
	@scripts/demo.sh

# The benchmarks are the modules that call main("NAME", ...); those that read the results of others come after them.
bench: setup ## install the peers, measure, draw plots; write bench/RESULTS.md, bench/results/ and docs/plots/
	@bench/peers.sh
	files=$$(grep -lE '^ *main\("' bench/*.py bench/*/__main__.py); \
	for each in $$(grep -L '"results"' $$files) $$(grep -l '"results"' $$files); do \
		module=$$(echo $${each%.py} | tr / .) && .venv/bin/python -m $${module%.__main__} || exit; \
	done
	.venv/bin/python -m bench.plots

docs: setup ## build the documents as a site: build/site/index.html
	.venv/bin/python docs/site.py
	@echo build/site/index.html

install: program ## install into PREFIX (/usr/local), and the helpers of mount(8) into /usr/sbin; DESTDIR is a prefix of all paths
	.venv/bin/python packaging/install.py install "$(PREFIX)" "$(DESTDIR)"

uninstall: ## remove the installed files; use the same PREFIX and DESTDIR
	PYTHONPATH=. python3 packaging/install.py uninstall "$(PREFIX)" "$(DESTDIR)"

deb: ## build the Debian package for this machine's release, into dist/
	@packaging/deb.sh dist

versions: ## write the newest versions of the developers' tools and their dependencies into scripts/versions.txt
	python3 -m venv --clear build/versions
	build/versions/bin/python -m pip install --quiet --editable ".[dev]"
	{ head -n 1 scripts/versions.txt; build/versions/bin/python -m pip freeze --exclude-editable; } > build/versions.txt
	mv build/versions.txt scripts/versions.txt

release: test ## make release VERSION=1.2.3: run all tests, set the version, build, check, commit and tag
	.venv/bin/python packaging/release.py "$(VERSION)"
	.venv/bin/python -m build --outdir dist
	.venv/bin/python -m twine check --strict dist/ktaskfs-$(VERSION)*
	@packaging/deb.sh dist
	git commit --all --message "Release $(VERSION)"
	git tag --annotate --message "ktaskfs $(VERSION)" v$(VERSION)
	@echo "now: git push --follow-tags; twine upload dist/ktaskfs-$(VERSION)*; publish the packages in dist/"

clean: ## remove built files
	rm -rf .venv *.egg-info build dist bench/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
