"""The hook of Slurm, called by slurmd on three nodes for real jobs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.slurm.cluster import HOOK, PAGE, PAGES, Cluster
from tests.support.poll import DEADLINE
from tests.support.shell import Outcome

if TYPE_CHECKING:
    from tests.fleet.hosts import Host

DISTRUST = "ktaskfs: /dev/hugepages/slurm is not a directory that only root may write to"
ASKS = f"--gres=hugepages:{PAGES}"
HALF = f"--gres=hugepages:{PAGES // 2}"


def figures(host: Host, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.sh(f"cat /run/ktaskfs/tasks/{task}/stat.json"))
    return found


def files(host: Host) -> list[str]:
    return host.sh("ls -A /dev/hugepages/slurm 2>/dev/null || :").split()


def tasks(host: Host) -> list[str]:
    return host.sh("ls /run/ktaskfs/tasks").split()


def test_a_job_finds_its_pages_and_they_are_scrubbed(cluster: Cluster) -> None:
    script = """
        stat --format='%U %a %s %b' "$HUGEPAGES_FILE"
        python3 -c 'import mmap, os
        file = os.open(os.environ["HUGEPAGES_FILE"], os.O_RDWR)
        pages = mmap.mmap(file, 0)
        print(pages[:].count(0) == len(pages))
        pages[:] = b"x" * len(pages)'
        echo $SLURM_JOB_ID"""
    outcome = cluster.job("hv[1,3]", script.replace("\n        ", "\n"), ASKS)
    assert outcome.status == 0, outcome
    lines = outcome.out.splitlines()
    number = lines[-1]
    assert sorted(lines) == sorted(
        2 * [f"{cluster.user.name} 600 {PAGES * PAGE} {PAGES * PAGE // 512}", "True", number]
    ), outcome
    cluster.until_idle("hv[1,3]")
    for host in (cluster.hosts[0], cluster.hosts[2]):
        assert files(host) == []
        for task in ("", "-scrub", "-free"):
            found = figures(host, f"slurm-{number}{task}")
            assert (found["state"], found["done"]) == ("done", PAGES * PAGE)


@pytest.mark.parametrize("name", ["plain", "x TresPerNode=gres:hugepages:4", "gres:hugepages:4"])
def test_a_job_that_asks_for_none_gets_none(cluster: Cluster, name: str) -> None:
    before = tasks(cluster.hosts[0])
    outcome = cluster.job("hv1", 'echo "<$HUGEPAGES_FILE>"', "--job-name", name)
    assert (outcome.status, outcome.out) == (0, "<>\n"), outcome
    cluster.until_idle("hv1")
    assert tasks(cluster.hosts[0]) == before


@pytest.mark.parametrize(("count", "pages"), [("hugepages", 1), ("hugepages:2", 2), ("hugepages:2,hugepages:1", 1)])
def test_the_number_of_pages(cluster: Cluster, count: str, pages: int) -> None:
    outcome = cluster.job("hv1", "stat --format=%s $HUGEPAGES_FILE", f"--gres={count}")
    assert outcome.out == f"{pages * PAGE}\n", outcome
    cluster.until_idle("hv1")


@pytest.mark.parametrize(
    "options", [["--array=1-2", HALF], [HALF, ":", "--nodelist=hv3", f"--gres=hugepages:{PAGES // 4}"]]
)
def test_each_job_of_an_array_or_of_several_parts_gets_its_own_pages(cluster: Cluster, options: list[str]) -> None:
    """The number of the whole is also the number of one of them: squeue(1) then names all of them."""
    script = f"test $(stat --format=%s $HUGEPAGES_FILE) = {PAGES // 2 * PAGE}"
    outcome = cluster.batch("hv1", script, *options)
    assert outcome.status == 0, outcome
    cluster.until_idle("hv[1,3]")
    assert files(cluster.hosts[0]) == []


@pytest.mark.parametrize("size", [0, PAGE, 2 * PAGES * PAGE, 1 << 60])
def test_a_job_may_shorten_and_extend_its_file(cluster: Cluster, size: int) -> None:
    outcome = cluster.job("hv1", f"truncate --size={size} $HUGEPAGES_FILE; rm $HUGEPAGES_FILE", HALF)
    assert (outcome.status, outcome.err.count("cannot remove")) == (1, 1), outcome
    cluster.until_idle("hv1")
    assert files(cluster.hosts[0]) == []


def test_a_node_without_the_pages_is_drained_and_says_why(cluster: Cluster) -> None:
    outcome = cluster.job("hv2", "echo begun", ASKS)
    assert outcome.status != 0
    assert "begun" not in outcome.out
    reason = cluster.until_drained("hv2")
    assert reason.startswith("ktaskfs: /dev/hugepages/slurm/"), reason
    assert "huge pages" in reason
    assert files(cluster.hosts[1]) == []
    cluster.resume("hv2")
    assert cluster.job("hv2", "echo begun", HALF).out == "begun\n"
    cluster.until_idle("hv2")


def test_a_node_without_ktaskfs_is_drained(cluster: Cluster) -> None:
    host = cluster.hosts[2]
    host.sh("mount --bind /mnt /run/ktaskfs")
    try:
        assert cluster.job("hv3", "echo begun", HALF).status != 0
        assert cluster.until_drained("hv3").startswith("ktaskfs: no ktaskfs is mounted on /run/ktaskfs")
    finally:
        host.sh("umount /run/ktaskfs")
    assert files(host) == []
    cluster.resume("hv3")


def test_a_file_that_is_still_in_use_drains_the_node(cluster: Cluster) -> None:
    """The pages stay where they are, with the file, until somebody removes the cause in the reason."""
    host = cluster.hosts[2]
    holder = "exec 9<$HUGEPAGES_FILE; echo $SLURM_JOB_ID; exec sleep infinity"
    with cluster.started("hv3", holder, HALF) as job:
        assert job.stdout is not None
        number = job.stdout.readline().strip()
        file = f"/dev/hugepages/slurm/{number}"
        host.sh(f"sleep infinity <{file} >/dev/null 2>&1 & echo $! >/run/holder")
        cluster.hosts[0].sh(f"scancel {number}")
        job.communicate(timeout=2 * DEADLINE)
    reason = cluster.until_drained("hv3")
    assert reason.startswith(f"ktaskfs: {file} is in use by sleep (")
    assert files(host) == [number]
    host.sh("kill $(cat /run/holder); while kill -0 $(cat /run/holder) 2>/dev/null; do sleep 0.02; done")
    by_hand = f"SLURM_SCRIPT_CONTEXT=epilog_slurmd SLURM_JOB_ID={number} SLURMD_NODENAME=hv3 {HOOK}"
    assert host.sh(by_hand) == ""
    assert files(host) == []
    cluster.resume("hv3")


@pytest.mark.parametrize(
    ("task", "spec"), [("slurm-999", "fallocate"), ("slurm-999-scrub", "clear"), ("slurm-999-free", "free unlink=1")]
)
def test_a_hook_that_was_killed_leaves_nothing(cluster: Cluster, task: str, spec: str) -> None:
    """Slurm does so after PrologEpilogTimeout; the task is still at work then, and the epilog waits for it."""
    host, file = cluster.hosts[0], "/dev/hugepages/slurm/999"
    by_hand = f"SLURM_SCRIPT_CONTEXT=epilog_slurmd SLURM_JOB_ID=999 SLURMD_NODENAME=hv1 {HOOK}"
    host.sh(f"mkdir -p /dev/hugepages/slurm; truncate --size={PAGES * PAGE} {file}")
    if task != "slurm-999":
        host.sh(f"ktaskfs run --quiet --if-exists=replace fallocate path={file} name=pages")
    host.sh(
        f"ktaskfs run --detach --if-exists=replace {spec} path={file} name={task} rate_max={PAGE // 256} chunk={PAGE}"
    )
    host.sh(f"{by_hand} >/run/epilog 2>&1 & echo $! >/run/epilog.pid")
    awaited = "slurm-999" if task == "slurm-999" else "slurm-999-"
    host.sh(f"until pgrep -f 'ktaskfs.cli.main wait .*{awaited}'; do sleep 0.02; done")
    assert figures(host, task)["state"] == "running"
    assert host.sh("stat --format=%a /dev/hugepages/slurm/.999") == "600\n", "no user may open it"
    host.sh(f"echo max >/run/ktaskfs/tasks/{task}/rate_max; while kill -0 $(cat /run/epilog.pid); do sleep 0.02; done")
    assert (files(host), host.sh("cat /run/epilog")) == ([], "")
    assert figures(host, task)["state"] == "done"


def test_two_epilogs_of_one_job_at_the_same_moment(cluster: Cluster) -> None:
    """As when slurmd runs one, and somebody another by hand. Neither drains the node because of the other."""
    host, directory = cluster.hosts[0], "/dev/hugepages/slurm"
    host.sh(f"mkdir -p {directory}")
    for number in range(801, 811):
        file = f"{directory}/{number}"
        host.sh(f"ktaskfs run --quiet --if-exists=replace fallocate path={file} length={PAGES * PAGE} name=pages")
        epilog = f"SLURM_SCRIPT_CONTEXT=epilog_slurmd SLURM_JOB_ID={number} SLURMD_NODENAME=hv1 {HOOK} 2>&1"
        both = f"{epilog} >/run/one & {epilog} >/run/other || echo the second failed; wait $! || echo the first failed"
        assert (host.sh(f"{both}; cat /run/one /run/other"), files(host)) == ("", [])
        assert figures(host, f"slurm-{number}-scrub")["state"] == "done"


@pytest.mark.parametrize("change", ["chown {}", "chmod 777", "chmod 775"])
def test_a_directory_of_somebody_else_drains_the_node(cluster: Cluster, change: str) -> None:
    """Its owner could put another file in the place of the job's."""
    host = cluster.hosts[2]
    host.sh("rm -rf /dev/hugepages/slurm; mkdir /dev/hugepages/slurm")
    host.sh(f"{change.format(cluster.user.uid)} /dev/hugepages/slurm")
    try:
        assert cluster.job("hv3", "echo begun", HALF).status != 0
        assert cluster.until_drained("hv3") == DISTRUST
    finally:
        host.sh("rmdir /dev/hugepages/slurm")
    cluster.resume("hv3")


def test_a_link_in_a_directory_of_somebody_else_is_not_followed(cluster: Cluster) -> None:
    """The epilog is root, and would clear and free its target. hugetlbfs has only hard links."""
    host, directory, target = cluster.hosts[2], "/dev/hugepages/slurm", "/dev/hugepages/precious"
    state = f"stat --format='%i %s %b %a %u %y' {target}"
    host.sh(f"rm -rf {directory}; mkdir {directory}; chown {cluster.user.uid} {directory}")
    host.sh(f": >{target}; chmod 666 {target}; ktaskfs run --quiet fallocate path={target} length={PAGE} name=precious")
    before, known = host.sh(state), tasks(host)
    try:
        link = f"ln {target} {directory}/$SLURM_JOB_ID"
        outcome = cluster.job("hv3", f"{link}; SLURM_SCRIPT_CONTEXT=prolog_task {HOOK}; echo $?")
        assert outcome == Outcome(0, "0\n", "")
        assert cluster.until_drained("hv3") == DISTRUST
        assert (host.sh(state), tasks(host)) == (before, known)
    finally:
        host.sh(f"rm -rf {directory} {target}")
    cluster.resume("hv3")
