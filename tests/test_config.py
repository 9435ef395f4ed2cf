"""The words after -o."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktaskfs.config import GENERIC, NAME_MAX, STATE_ROOT, default_statedir, escape_path, parse_options, state_name
from ktaskfs.errors import ConfigError
from ktaskfs.tasks.tunables import TUNABLES

PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(lambda t: f"/{t}")


def test_without_options_the_mount_is_the_daemons_own() -> None:
    config = parse_options("/run/ktaskfs", [], {"XDG_RUNTIME_DIR": "/"})
    assert (config.uid, config.gid, config.mode, config.hidepid) == (os.geteuid(), os.getegid(), 0o660, 0)
    assert config.allow_other == (os.geteuid() == 0)
    assert dict(config.tunables) == {}


def test_every_option_of_the_mount() -> None:
    options = ["uid=1,gid=2,mode=0640", "hidepid=2,statedir=/some/where,noallow_other,allow_other"]
    config = parse_options("/mnt", options, {})
    assert (config.uid, config.gid, config.mode, config.hidepid) == (1, 2, 0o640, 2)
    assert (config.statedir, config.allow_other) == ("/some/where", True)


def test_users_and_groups_by_name() -> None:
    config = parse_options("/mnt", ["uid=root,gid=root"], {"XDG_RUNTIME_DIR": "/"})
    assert (config.uid, config.gid) == (0, 0)


@pytest.mark.parametrize("tunable", TUNABLES, ids=lambda each: each.name)
def test_every_tunable_is_an_option_with_its_bounds(tunable: object) -> None:
    each = next(one for one in TUNABLES if one is tunable)
    for value in (each.least, each.most, each.default):
        config = parse_options("/mnt", [f"{each.name}={each.format(value)}", "statedir=/s"], {})
        assert dict(config.tunables) == {each.name: value}
    for value in (each.least - 1, each.most + 1):
        with pytest.raises(ConfigError, match=each.name):
            parse_options("/mnt", [f"{each.name}={value}"], {})


def test_the_last_of_several_counts() -> None:
    config = parse_options("/mnt", ["nice=3,statedir=/s,nice=4", "nice=5"], {})
    assert dict(config.tunables) == {"nice": 5}


def test_generic_options_are_taken() -> None:
    others = ["x-systemd.automount", "X-mount.mkdir", "comment=systemd.automount", "", "statedir=/s"]
    everything = ",".join([*sorted(GENERIC), *others])
    assert parse_options("/mnt", [everything], {}).mode == 0o660


@pytest.mark.parametrize(
    "option",
    ["ro", "nosuch", "nosuch=1", "uid", "uid=", "uid=-1", "uid=4294967295", "uid=nobody at all", "uid=٣", "uid=²"]
    + ["gid=no such group", "mode=", "mode=8", "mode=1000", "mode=0x1", "hidepid=3", "hidepid=", "statedir="]
    + ["allow_other=1", "nice", "nice=", "nice=20", "max_threads=MAX", "uid=a\0b", "mode=" + "7" * 9000],
)
def test_what_is_refused_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match="option ") as refusal:
        parse_options("/mnt", [f"statedir=/s,{option}"], {})
    assert refusal.value.errname == "EINVAL"
    assert refusal.value.message.isprintable()


@given(st.text())
def test_arbitrary_options_are_taken_or_refused(text: str) -> None:
    try:
        config = parse_options("/mnt", [text, "statedir=/s"], {})
    except ConfigError:
        return
    assert 0 <= config.mode <= 0o777


def test_the_mountpoint_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("there")
    assert parse_options("link", ["statedir=s"], {}).mountpoint == f"{tmp_path}/there"
    assert parse_options("link", ["statedir=s"], {}).statedir == f"{tmp_path}/s"


@pytest.mark.parametrize("name", ["statedir", "config"])
@pytest.mark.parametrize("below", ["", "/a", "/a/../b"])
def test_nothing_that_the_daemon_needs_is_in_its_own_mount(tmp_path: Path, name: str, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(ConfigError, match="lies inside the mount"):
        parse_options(f"{tmp_path}/there", [f"{name}={tmp_path}/link{below}"], {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert parse_options(f"{tmp_path}/there", [f"{name}={tmp_path}/there2,statedir=/s"], {}).statedir == "/s"


def test_where_tasks_are_remembered(tmp_path: Path) -> None:
    assert default_statedir("/run/ktaskfs", 0, {}) == f"{STATE_ROOT}/run-ktaskfs"
    assert default_statedir("/a", 1000, {"XDG_RUNTIME_DIR": str(tmp_path)}) == f"{tmp_path}/ktaskfs/a"
    with pytest.raises(ConfigError, match="statedir"):
        default_statedir("/a", 1000, {"XDG_RUNTIME_DIR": str(tmp_path / "missing")})


def test_a_name_that_would_be_too_long_is_digested() -> None:
    longest = "/" + "a" * NAME_MAX
    assert state_name(longest) == escape_path(longest)
    first, second = (state_name(f"{longest}{end}") for end in "xy")
    assert len(first) == len(second) == NAME_MAX
    assert first != second
    assert len(state_name("/mnt/" + "\u6771" * 30)) == NAME_MAX


def test_an_empty_mount_point_is_no_directory() -> None:
    """As that of a variable that is not set; abspath(3) would make the working directory of it."""
    with pytest.raises(ConfigError, match="No such file") as caught:
        parse_options("", ["statedir=/s"], {})
    assert caught.value.errno == errno.ENOENT


@given(PATHS, PATHS)
def test_two_paths_never_share_a_name(first: str, second: str) -> None:
    def parts(path: str) -> list[str]:
        return [part for part in path.split("/") if part]

    assert (escape_path(first) == escape_path(second)) == (parts(first) == parts(second))


def test_a_character_of_several_bytes_is_not_an_escape_and_a_number() -> None:
    assert escape_path("/\u2d42") != escape_path("/-42")


@given(PATHS)
def test_an_escaped_path_is_one_visible_component(path: str) -> None:
    name = escape_path(path)
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()
    assert name.isprintable()


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd-escape is not installed")
@pytest.mark.parametrize("path", ["/", "/run/ktaskfs", "/a b/c-d", "/.hidden/x", "/caf\u00e9", "/a.b/..c", "/x\\y"])
def test_names_are_those_of_systemd(path: str) -> None:
    theirs = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True)
    assert escape_path(path) == theirs.stdout.rstrip("\n")


def tunables_in(path: Path, text: str | bytes, options: str = "") -> dict[str, int]:
    """The options of the configuration file ``path`` with that text."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_options("/mnt", [f"statedir=/s,config={path},{options}"], {}).file_tunables()


def test_the_configuration_file(tmp_path: Path) -> None:
    text = "# all tasks\n\nmax_threads = 8   # each\n\tnice=0x3\r\ncpu_percent= 50"
    assert tunables_in(tmp_path / "conf", text) == {"max_threads": 8, "nice": 3, "cpu_percent": 50}


def test_an_option_goes_before_the_file(tmp_path: Path) -> None:
    assert tunables_in(tmp_path / "conf", "max_threads = 8\nnice = 3\n", "nice=4") == {"max_threads": 8}


def test_every_line_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    lines = ["nice = 20", "nice = 1", "nosuch = 1", "nice", "[ktaskfs]", "nice = 2", "max_tasks =", "= 1", "\udcff = 1"]
    with pytest.raises(ConfigError) as refusal:
        tunables_in(path, "\n".join(lines).encode(errors="surrogateescape"))
    said = refusal.value.message.splitlines()
    assert [line.partition(": ")[0] for line in said] == [f"{path}:{number}" for number in (1, 3, 4, 5, 6, 7, 8, 9)]
    assert "20 is above the maximum, 19" in said[0].replace("'", "")
    assert all(line.isprintable() for line in said)


@given(st.binary())
def test_arbitrary_files_are_taken_or_refused(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        said, values = "", {}
        try:
            values = tunables_in(Path(file.name), data)
        except ConfigError as error:
            said = error.message
        assert all(line.startswith(f"{file.name}:") for line in said.splitlines())
        assert values.keys() <= {each.name for each in TUNABLES}


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    config = parse_options("/mnt", [f"statedir=/s,config={tmp_path}/none"], {})
    with pytest.raises(ConfigError, match="none: No such file"):
        config.file_tunables()


def test_the_usual_file_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktaskfs.config.CONFIG_FILE", str(tmp_path / "none"))
    assert parse_options("/mnt", ["statedir=/s"], {}).file_tunables() == {}


def test_a_mount_point_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "again").symlink_to(tmp_path / "link/below")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    for point, resolved in {
        "link/below": "real/below",
        "again/": "real/below",
        "link/none": "real/none",
        "real/below/..": "real",
        "loop": "loop",
        ".": "",
    }.items():
        config = parse_options(point, ["statedir=/run/none"], {})
        assert config.mountpoint == str(tmp_path / resolved), point
