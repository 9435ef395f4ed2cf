"""The collection, checked by Ansible's tools (ansible-lint, ansible-test sanity, ansible-doc) and by mypy."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

import pytest
import yaml

from ktaskfs.cli.arguments import DEFAULT_MOUNT
from tests.ansible.plays import Ansible
from tests.ansible.tools import COLLECTION, PLACE, sanity_home
from tests.support.daemon import ROOT
from tests.support.packages import Unavailable
from tests.support.poll import DEADLINE
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ansible.conftest import Utilities

SANITY: Final = (
    *("action-plugin-docs", "ansible-doc", "compile", "empty-init", "ignores", "import", "line-endings", "no-assert"),
    *("no-get-exception", "no-illegal-filenames", "no-smart-quotes", "replace-urlopen", "shebang", "symlinks"),
    *("use-argspec-type-path", "validate-modules"),
)
"""The tests to run. Not among them: pslint needs PowerShell; shellcheck finds no shell scripts; changelog has no file
to read; ansible-lint, ruff and mypy do the work of runtime-metadata, yamllint, pep8 and pylint."""


@pytest.fixture
def place(collections: Path) -> Path:
    """The directory of the collection, where Ansible finds it."""
    return collections / PLACE


def test_lint(newest: Path, collections: Path, place: Path, tmp_path: Path) -> None:
    ansible = Ansible(newest, collections, tmp_path)
    done = ansible("ansible-lint", "--offline", "--profile=production", "--nocolor", cwd=place)
    assert done.status == 0, done
    assert "Profile 'production' was required, and it passed" in done.err, done


def test_sanity(newest: Path, place: Path) -> None:
    """The tests run without containers, each in a separate environment in the cache."""
    try:
        home = sanity_home(newest)
    except Unavailable as error:
        pytest.skip(str(error))
    words = [f"--test={name}" for name in SANITY]
    (library,) = newest.parent.glob("lib/python*")
    python = library.name.removeprefix("python")  # Ansible's, which it supports, not that of these tests
    env = {"HOME": str(home), "PATH": f"{newest}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    command = [str(newest / "ansible-test"), "sanity", "--color=no", f"--python={python}", *words]
    done = run(*command, cwd=place, env=env, timeout=5 * DEADLINE)
    assert done.status == 0, done
    ran = set(re.findall(r'Running sanity test "([\w-]+)"', done.out + done.err))
    assert ran == set(SANITY)


def test_types(collections: Path, tmp_path: Path) -> None:
    settings = tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\nstrict = True\npython_version = 3.11\nnamespace_packages = True\nexplicit_package_bases = True\n"
        "[mypy-ansible.*]\nignore_missing_imports = True\n"
    )
    words = ["-m", "mypy", "--config-file", str(settings), "--cache-dir", str(ROOT / ".mypy_cache")]
    env = {"MYPYPATH": str(collections)}
    done = run(sys.executable, *words, "-p", "ansible_collections.ktaskfs.host.plugins", cwd=collections, env=env)
    assert done.status == 0, done


def test_the_documentation_is_complete(newest: Path, collections: Path, tmp_path: Path) -> None:
    ansible = Ansible(newest, collections, tmp_path)
    for name in ("task", "info"):
        done = ansible("ansible-doc", "--json", f"ktaskfs.host.{name}")
        assert (done.status, done.err) == (0, "")
        assert f'"default": "{DEFAULT_MOUNT}"' in done.out
    done = ansible("ansible-doc", "--type=role", "ktaskfs.host.service")
    assert "service_pools" in done.out


def test_the_page_of_the_role_has_its_variables() -> None:
    role = COLLECTION / "roles/service"
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    described = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: each["default"] for name, each in described.items()} == defaults
    page = (role / "README.md").read_text()
    assert [name for name in defaults if f"`{name}`" not in page] == []


def test_what_the_module_says_of_states_is_what_the_daemon_has(utilities: Utilities) -> None:
    from ktaskfs.tasks.task import ENDED, State

    request = utilities.request
    at_work, ended = set(request.AT_WORK), {*request.ENDED_EARLY, "done", "planned"}
    assert at_work | ended | {"new"} == {str(state) for state in State}
    assert ended == {str(state) for state in ENDED}


def test_the_changes_begin_with_this_version() -> None:
    version = yaml.safe_load((COLLECTION / "galaxy.yml").read_text())["version"]
    found = re.search(r"^## (\S+)", (COLLECTION / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == version
