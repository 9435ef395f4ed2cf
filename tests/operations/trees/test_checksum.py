from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ktaskfs.errors import Finding, InvalidValue, TargetError
from tests.operations.trees.ground import as_nobody, make
from tests.support.shell import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.runner import Runner

MIB = 1 << 20
TOOLS = ["sha256sum", "sha512sum", "b2sum", "sha1sum", "md5sum"]


@pytest.fixture
def tree(disk: Path) -> Path:
    top = disk / "tree"
    for number in range(20):
        make(top / f"d{number % 3}/f{number}")
    (top / "d0/large").write_bytes(os.urandom(21 * MIB + 7))
    (top / "d0/empty").touch()
    for name in ("with space", "line\nfeed", "back\\slash\r", "ü", " *x"):
        (top / name).write_text(name)
    return top


def digests(runner: Runner, **texts: object) -> str:
    return runner.result(runner.prepare("checksum", **texts))


def failed(runner: Runner, **texts: object) -> Finding:
    with pytest.raises(Finding) as caught:
        runner.run("checksum", **texts)
    return caught.value


def tool(algorithm: str, top: Path) -> list[str]:
    """The lines of the tool itself, sorted."""
    found = run("bash", "-c", f'cd "$0" && find . -type f -printf "%P\\0" | xargs -0 {algorithm}', str(top))
    assert found.status == 0
    return sorted(found.out.splitlines())


@pytest.mark.parametrize("algorithm", TOOLS)
def test_the_lines_are_those_of_the_tool(runner: Runner, tree: Path, algorithm: str) -> None:
    result = digests(runner, path=tree, algorithm=algorithm)
    assert sorted(result.splitlines()) == tool(algorithm, tree)
    checked = subprocess.run([algorithm, "-c", "--strict", "--quiet"], input=result, text=True, cwd=tree, check=False)
    assert checked.returncode == 0


def test_one_file_has_the_name_that_was_given(runner: Runner, tree: Path) -> None:
    path = tree / "d0/large"
    assert digests(runner, path=path, algorithm="sha256sum") == run("sha256sum", str(path)).out
    assert digests(runner, path=path).startswith("crc32 "), "without an algorithm it is a range of a file"
    assert isinstance(runner.refused("checksum", path=tree, algorithm="crc32"), InvalidValue)
    assert isinstance(runner.refused("checksum", path=tree, expect="00000000"), InvalidValue)


@pytest.mark.parametrize("algorithm", TOOLS)
def test_a_manifest_of_the_tool(runner: Runner, tree: Path, disk: Path, algorithm: str) -> None:
    manifest = disk / "SUMS"
    manifest.write_text("# a comment\n\n" + "\n".join(tool(algorithm, tree)[:-1]) + "\r\n")
    result = digests(runner, path=tree, algorithm=algorithm, manifest=manifest)
    assert result.startswith("files 26\n"), "the one that it does not name is not looked at"
    assert "\ndiffer 0\nmissing 0\n" in result


def test_each_file_that_differs_is_named(runner: Runner, tree: Path, disk: Path) -> None:
    manifest = disk / "SUMS"
    text = digests(runner, path=tree)
    manifest.write_text(text.replace("  d", " *./d"))
    (tree / "d1/f1").write_bytes(b"x")
    with (tree / "d0/large").open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"xyz")
    (tree / "line\nfeed").unlink()
    found = failed(runner, path=tree, manifest=manifest)
    assert found.errno == errno.EBADMSG
    assert found.message.startswith("2 differ from the manifest, 1 are missing: ")
    header, _, rows = found.result.partition("what path\n")
    assert header.startswith("files 26\n")
    assert sorted(rows.splitlines()) == ["differs d0/large", "differs d1/f1", "missing line\\012feed"]


def test_a_manifest_for_one_file(runner: Runner, tree: Path, disk: Path) -> None:
    manifest = disk / "SUMS"
    manifest.write_bytes(
        subprocess.run(["sha256sum", "large"], capture_output=True, check=True, cwd=tree / "d0").stdout
    )
    assert "\ndiffer 0\nmissing 0\n" in digests(runner, path=tree / "d0/large", manifest=manifest)
    assert failed(runner, path=tree / "d0/empty", manifest=manifest).message.endswith("1 are missing: large")


@pytest.mark.parametrize("text", ["x", "abcd  file", f"{'0' * 64} file", f"{'g' * 64}  file", f"{'0' * 32}  file"])
def test_a_manifest_that_is_none(runner: Runner, tree: Path, disk: Path, text: str) -> None:
    manifest = disk / "SUMS"
    manifest.write_text(f"\n{text}\n")
    refused = runner.refused("checksum", path=tree, manifest=manifest)
    assert isinstance(refused, InvalidValue)
    assert refused.message == f"{manifest}, line 2 is not a digest of sha256sum and a name"
    assert runner.refused("checksum", path=tree, manifest=disk / "none").errno == errno.ENOENT


@pytest.mark.parametrize("text", ["", "\n\r\n# nothing\n"])
def test_a_manifest_of_nothing_proves_nothing(runner: Runner, tree: Path, disk: Path, text: str) -> None:
    manifest = disk / "SUMS"
    manifest.write_text(text)
    refused = runner.refused("checksum", path=tree, manifest=manifest)
    assert (refused.errno, refused.message) == (errno.EINVAL, f"{manifest} lists no file")


def test_a_manifest_with_two_digests_of_one_file(runner: Runner, tree: Path, disk: Path) -> None:
    manifest = disk / "SUMS"
    right = next(line for line in tool("sha256sum", tree) if line.endswith("  ü"))
    manifest.write_text(f"{right}\n{right}\n")
    assert "\ndiffer 0\n" in digests(runner, path=tree, manifest=manifest)
    manifest.write_text(f"{'0' * 64}  ü\n{right.replace('ü', './ü')}\n")
    refused = runner.refused("checksum", path=tree, manifest=manifest)
    assert (refused.errno, ", line 2: " in refused.message) == (errno.EINVAL, True)


def test_a_long_list_goes_to_a_file(runner: Runner, tree: Path, disk: Path) -> None:
    (tree / "bad\udcff").touch()
    assert digests(runner, path=tree).endswith("# 1 more; use out=FILE for all\n")
    out = disk / "out"
    plan = runner.prepare("checksum", path=tree, out=out)
    assert not out.exists()
    size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file())
    assert runner.result(plan) == f"files 28\nbytes {size}\nskipped 0\nmounts 0\n"
    assert subprocess.run(["sha256sum", "-c", "--strict", "--quiet", out], cwd=tree, check=False).returncode == 0
    assert len(out.read_bytes().splitlines()) == 28


def test_out_is_made_anew_or_not_at_all(runner: Runner, tree: Path, disk: Path) -> None:
    out = disk / "out"
    out.write_text("mine")
    assert runner.refused("checksum", path=tree, out=out).errno == errno.EEXIST
    assert out.read_text() == "mine"
    out.unlink()
    out.symlink_to(disk / "elsewhere")
    assert isinstance(runner.refused("checksum", path=tree, out=out), TargetError)
    assert not (disk / "elsewhere").exists()
    out.unlink()
    runner.prepare("checksum", path=tree, out=out).abort()
    assert not out.exists()
    plan = runner.prepare("checksum", path=tree, out=out)
    out.write_text("theirs")
    with pytest.raises(Finding) as caught:
        runner.work(plan)
    assert (caught.value.errno, out.read_text()) == (errno.EEXIST, "theirs")
    assert sum(line[0] != "#" for line in caught.value.result.splitlines()) == 27, "but the list is not lost"
    out.unlink()
    told = runner.result(runner.prepare("checksum", path=tree, out=out, plan=1))
    assert f"\ncreates {out}\n" in told
    assert not out.exists()
    assert isinstance(runner.refused("checksum", path=tree, out=out, manifest=disk / "SUMS"), InvalidValue)


def test_files_that_cannot_be_read_or_change(runner: Runner, tree: Path, root: None) -> None:
    """The others are in the list all the same, which the tool still takes."""
    tree.chmod(0o755)
    (tree / "d0/large").chmod(0o600)

    def body() -> tuple[int, str]:
        found = failed(runner, path=tree)
        return found.errno, found.result

    number, text = as_nobody(body)
    assert number == errno.EACCES
    assert text.endswith("\n# reason path\n# EACCES d0/large\n")
    assert len(text.splitlines()) == 26 + 2
    assert (
        subprocess.run(
            ["sha256sum", "-c", "--strict", "--quiet"], input=text, text=True, cwd=tree, check=False
        ).returncode
        == 0
    )

    plan = runner.prepare("checksum", path=tree)
    (tree / "d0/empty").unlink()
    os.mkfifo(tree / "d0/empty")
    (tree / "ü").unlink()
    with (tree / "d1/f1").open("ab") as file:
        file.write(b"more")
    with pytest.raises(Finding) as caught:
        runner.work(plan)
    assert caught.value.errno == errno.EINVAL
    rows = caught.value.result.partition("# reason path\n")[2].splitlines()
    assert sorted(rows) == ["# EINVAL d0/empty", "# gone ü"], "what grew before it was read is read as it is"


def test_a_file_that_changes_while_it_is_read(runner: Runner, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    large = tree / "d0/large"

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 4 * MIB:
            os.truncate(large, 10 * MIB)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    found = failed(runner, path=large, algorithm="b2sum")
    assert (found.errno, found.result) == (errno.EBUSY, "# reason path\n# EBUSY large\n")
    assert found.message == "1 skipped: changed during the work"


def test_links_and_second_names(runner: Runner, tree: Path) -> None:
    os.link(tree / "ü", tree / "again")
    (tree / "link").symlink_to("d0/empty")
    assert len(digests(runner, path=tree).splitlines()) == 28
    result = digests(runner, path=tree, links=1)
    assert len(result.splitlines()) == 29
    assert (
        subprocess.run(["sha256sum", "-c", "--quiet"], input=result, text=True, cwd=tree, check=False).returncode == 0
    )
