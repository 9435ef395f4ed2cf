"""Fixtures for every test; the classes behind them are in tests/support/."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest
import trio
from hypothesis import HealthCheck, settings

if str(Path(__file__).parents[1]) not in sys.path:  # so that a bare `pytest` finds tests.support as `python -m` does
    sys.path.insert(0, str(Path(__file__).parents[1]))

from ktaskfs.tasks.patience import VARIABLE
from tests.support import filesystems, fuse_device
from tests.support.daemon import ROOT, Mount
from tests.support.leftovers import none_left
from tests.support.poll import DEADLINE
from tests.support.shell import run
from tests.support.tiers import ROOT_FIXTURES, tier_of
from tests.support.users import User, ordinary_user

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence


# The machine may be busy, so no example has a deadline. The parent is what Hypothesis chose: in CI, its profile for CI.
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class MountMaker(Protocol):
    """Makes one more mount; ``options`` as after ``-o``. The same ``statedir`` again adopts existing tasks."""

    def __call__(
        self,
        options: str = "",
        *,
        user: User | None = None,
        statedir: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> Mount: ...


def pytest_configure(config: pytest.Config) -> None:
    """At SIGTERM, as from timeout(1), a run restores everything before it ends, as after ^C.

    So does each of several processes: the first signals the others and waits for them. pytest-xdist alone would kill
    them after ten seconds.
    """
    here = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != here:  # a forked child of a test
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signal.signal(number, lambda *_: None)  # timeout(1) tells its child and then its group: the child twice
        if hasattr(config, "workerinput"):
            config.add_cleanup(lambda: os._exit(pytest.ExitCode.INTERRUPTED))  # instead of waiting for more to do
        if config.pluginmanager.hasplugin("dsession"):
            others = psutil.Process().children()
            for each in others:
                each.send_signal(number)
            psutil.wait_procs(others, DEADLINE)
        raise KeyboardInterrupt("SIGTERM")

    signal.signal(signal.SIGTERM, end)
    # A run in the background of a script is born with SIGINT ignored, and so would be all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marker of its tier."""
    for item in items:
        names = item.fixturenames if isinstance(item, pytest.Function) else ()
        if (tier := tier_of(item.path, needs_root=not ROOT_FIXTURES.isdisjoint(names))) is not None:
            item.add_marker(tier)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadscope``, a scope is what belongs into one process."""
    if config.getvalue("dist") != "loadscope":
        return None
    from tests.support.scheduling import ByProcess  # not every interpreter that runs tests has pytest-xdist

    return ByProcess(config, log)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where everything must run (KTASKFS_REQUIRE_ALL=1), a skip is a failure that says the skip's reason."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("KTASKFS_REQUIRE_ALL") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where KTASKFS_REQUIRE_ALL=1 forbids it: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session")
def root() -> None:
    """Mounts, users and pools need root: skip the test for others, and take it out of the tier ``fast``."""
    if os.geteuid() != 0:
        pytest.skip("only root may do this")


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop cannot start a thread, as at a limit on processes."""

    async def no_thread(*arguments: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons answer a start when it has begun or is refused, even if its worker stalls as on a busy machine.

    They learn what killed a worker even if the spawner stalls.
    """
    monkeypatch.setenv(VARIABLE, str(DEADLINE))


@pytest.fixture
def area() -> Iterator[Path]:
    """An empty directory with a short path that every user may search (only its owner may search ``tmp_path``)."""
    path = Path(tempfile.mkdtemp(prefix="kt-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def disk() -> Iterator[Path]:
    """An empty directory on a filesystem whose files are not memory: /tmp may be tmpfs, /var/tmp outlives a boot."""
    path = Path(tempfile.mkdtemp(prefix="kt-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def mount_maker(area: Path, request: pytest.FixtureRequest) -> Iterator[MountMaker]:
    """``mount_maker(options, user=, statedir=)``: daemons that are all unmounted, and checked, at the end."""
    numbers = itertools.count()
    with none_left(), contextlib.ExitStack() as mounts:

        def make(
            options: str = "",
            *,
            user: User | None = None,
            statedir: Path | None = None,
            prefix: Sequence[str] = (),
        ) -> Mount:
            number = next(numbers)
            point = area / f"mount{number}"
            point.mkdir()
            if statedir is None:
                statedir = area / f"state{number}"
            statedir.mkdir(exist_ok=True)
            root = ROOT
            if user is not None:
                request.getfixturevalue("fuse_for_all")
                root = request.getfixturevalue("public_root")
                os.chown(point, user.uid, user.gid)
                os.chown(statedir, user.uid, user.gid)
            log = area / f"log{number}"
            mount = Mount(point, statedir=statedir, log=log, options=options, user=user, root=root, prefix=prefix)
            mounts.callback(mount.close)
            return mount

        yield make


@pytest.fixture
def mounted(mount_maker: MountMaker) -> Mount:
    """A new daemon with default options on a separate mount."""
    return mount_maker()


@pytest.fixture(scope="session")
def two_users(root: None) -> Iterator[tuple[User, User]]:
    """Two ordinary users, for the length of the run; pass one as ``user=`` to whatever runs a command."""
    with ordinary_user("a") as first, ordinary_user("b") as second:
        yield first, second


@pytest.fixture(scope="session")
def public_root(two_users: tuple[User, User]) -> Iterator[Path]:
    """The project where ordinary users can reach it, mounted there if the clone lies in somebody's own directory."""
    if run("test", "-r", str(ROOT / "pyproject.toml"), user=two_users[0]).status == 0:
        yield ROOT
    else:
        with filesystems.public_view(ROOT) as path:
            yield path


@pytest.fixture(scope="session")
def fuse_for_all(root: None) -> Iterator[None]:
    """Every user may open /dev/fuse."""
    with fuse_device.for_all():
        yield


@pytest.fixture(params=filesystems.page_sizes(), ids=lambda size: f"{size >> 20}M")
def page_size(request: pytest.FixtureRequest) -> int:
    """Each size of huge pages that the machine has, in bytes."""
    size: int = request.param
    return size


@pytest.fixture
def hugetlbfs(root: None, area: Path, page_size: int) -> Iterator[Path]:
    """A hugetlbfs for each page size, open to every user; ask for the pool beside it."""
    with filesystems.hugetlbfs(area / "huge", page_size) as path:
        yield path


@pytest.fixture(params=["huge=never", "huge=always"])
def tmpfs(root: None, request: pytest.FixtureRequest, area: Path) -> Iterator[Path]:
    """A tmpfs of 256 MiB, without and with huge pages, open to every user."""
    with filesystems.tmpfs(area / "tmpfs", 256 << 20, f"mode=1777,{request.param}") as path:
        yield path
