"""``metrics`` as monitoring takes it: promtool, the textfile collector of node_exporter, a Prometheus that alerts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from tests.support.daemon import ROOT
from tests.support.hugepages import alone
from tests.support.packages import Unavailable, cache, unpacked
from tests.support.poll import DEADLINE, until
from tests.support.processes import halt
from tests.support.shell import environment, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Mount
    from tests.support.users import User

MONITORING = ROOT / "docs/monitoring"
METRIC = re.compile(r"\b(?:ktaskfs|node)_[a-z_]+\b")
CONFIG = """
global: {{scrape_interval: 2s, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
- job_name: node
  static_configs: [{{targets: ['{target}']}}]
"""


@dataclass(frozen=True)
class Programs:
    """Debian's Prometheus and node_exporter, of which nothing is installed."""

    prometheus: Path
    promtool: Path
    exporter: Path


@pytest.fixture(scope="module")
def programs(root: None) -> Programs:
    try:
        with cache():
            server, exporter = (unpacked(name) / "usr/bin" for name in ("prometheus", "prometheus-node-exporter"))
            # Debian 12 has it in the package of the server.
            promtool = next(server.glob("promtool"), None) or unpacked("promtool") / "usr/bin/promtool"
    except Unavailable as error:
        pytest.skip(str(error))
    return Programs(server / "prometheus", promtool, exporter / "prometheus-node-exporter")


@contextlib.contextmanager
def served(user: User, log: Path, program: Path, *arguments: str, ready: str = "metrics") -> Iterator[str]:
    """``program`` as a service of an ordinary user; its address. At the end it must still have run."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "--web.listen-address=127.0.0.1:0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd="/",
            env=environment(user),
            user=user.uid,
            group=user.gid,
            extra_groups=[],
        )
    found: list[str] = []

    def is_ready() -> bool:
        found[:] = listened(process.pid)
        return process.poll() is not None or any(answers(f"{each}/{ready}") for each in found)

    try:
        until(is_ready, f"{program.name} answers")
        assert process.poll() is None, log.read_text()
        (address,) = found
        yield address
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(DEADLINE)


def listened(pid: int) -> list[str]:
    """The addresses on which a process waits for connections."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:  # it has ended
        return []
    return ["{}:{}".format(*each.laddr) for each in sockets if each.status == psutil.CONN_LISTEN]


def get(url: str) -> str:
    with urllib.request.urlopen(f"http://{url}", timeout=DEADLINE) as answer:
        text: str = answer.read().decode()
    return text


def answers(url: str) -> bool:
    try:
        get(url)
    except OSError:
        return False
    return True


@pytest.fixture
def exporter(mounted: Mount, area: Path, two_users: tuple[User, User], programs: Programs) -> Iterator[str]:
    """The address of a node_exporter with the collectors that it has by default, which finds ``metrics`` by a link."""
    directory = area / "textfiles"
    directory.mkdir()
    (directory / "ktaskfs.prom").symlink_to(mounted.path / "metrics")
    log = area / "exporter.log"
    with served(two_users[0], log, programs.exporter, f"--collector.textfile.directory={directory}") as address:
        yield address


def scraped(exporter: str) -> dict[str, float]:
    """Every series that the exporter gives, by its name and labels."""
    lines = (line for line in get(f"{exporter}/metrics").splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


def fail_one(mount: Mount, memory: Path) -> None:
    """Let a task fail: its source is truncated after its start."""
    source = memory / "source"
    source.write_bytes(bytes(1 << 20))
    spec = f"copy source={source} path={memory}/target name=failing rate_max=4K chunk=4K"
    assert mount.write("tasks/control", spec) == (0, None)
    until(lambda: not mount.read("tasks/failing/progress").startswith("0 /"), "a part is copied")
    os.truncate(source, 0)
    assert mount.read("tasks/failing/wait").endswith("failed\n")


def test_promtool_finds_nothing_to_criticise(mounted: Mount, memory: Path, programs: Programs) -> None:
    fail_one(mounted, memory)
    mounted.shell("mkdir tasks/empty")
    checked = run(str(programs.promtool), "check", "metrics", stdin=mounted.read("metrics"))
    assert (checked.status, checked.out, checked.err) == (0, "", "")


def test_the_collector_takes_the_file_and_says_how_old_it_is(mounted: Mount, exporter: str) -> None:
    found = scraped(exporter)
    assert found["node_textfile_scrape_error"] == 0
    assert found['ktaskfs_tasks{operation="clear",state="running"}'] == 0
    assert found["ktaskfs_process_resident_memory_bytes"] > 1 << 20
    assert found["process_resident_memory_bytes"] != found["ktaskfs_process_resident_memory_bytes"], "the exporter's"
    (age,) = [name for name in found if name.startswith("node_textfile_mtime_seconds")]
    assert found[age] == pytest.approx(time.time(), abs=60)
    until(lambda: scraped(exporter)[age] > found[age], "the time moves")


def test_the_pools_of_the_machine_add_up_to_what_it_has(exporter: str) -> None:
    with alone():
        found = scraped(exporter)
    for pool in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        size = int(pool.name[10:-2]) << 10
        of_size = {name: value for name, value in found.items() if f'page_size="{size}"' in name}
        machine = of_size[f'ktaskfs_hugepages{{page_size="{size}"}}']
        nodes = [value for name, value in of_size.items() if name.startswith("ktaskfs_node_hugepages{")]
        assert len([name for name in of_size if name.startswith("ktaskfs_hugepages{")]) == 1
        assert machine == sum(nodes)


class Server:
    """A Prometheus with the alert rules, at ``address``."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expression})
        answer = json.loads(get(f"{self._address}/api/v1/query?{query}"))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def values(self, expression: str) -> list[str]:
        return [each["value"][1] for each in self.query(expression)]


@pytest.fixture
def server(area: Path, exporter: str, two_users: tuple[User, User], programs: Programs) -> Iterator[Server]:
    """It reads from the exporter every two seconds, and waits as long for it."""
    (area / "prometheus.yml").write_text(CONFIG.format(rules=MONITORING / "alerts.yml", target=exporter))
    data = area / "data"
    data.mkdir()
    os.chown(data, two_users[0].uid, two_users[0].gid)
    arguments = [f"--config.file={area}/prometheus.yml", f"--storage.tsdb.path={data}"]
    log = area / "prometheus.log"
    with served(two_users[0], log, programs.prometheus, *arguments, ready="-/ready") as address:
        yield Server(address)


def test_an_alert_on_the_first_failure(mounted: Mount, memory: Path, server: Server) -> None:
    """If a series appears only with its first event, its increase is 0 then, and no alert fires."""
    failures = 'ktaskfs_tasks_ended_total{operation="copy",outcome="failed"}'
    until(lambda: server.values(failures) == ["0"], "the count is there before any failure")
    fired = 'ALERTS{alertname="KtaskfsTaskFailed",alertstate="firing"}'
    assert server.query(fired) == []
    fail_one(mounted, memory)
    alerts: list[dict[str, Any]] = []

    def fires() -> bool:
        alerts[:] = server.query(fired)
        return alerts != []

    until(fires, "the alert fires")
    (alert,) = alerts
    assert alert["metric"]["operation"] == "copy"


def test_an_alert_on_a_daemon_that_hangs(mounted: Mount, server: Server) -> None:
    """node_exporter then waits for it, and gives no series at all."""
    until(lambda: server.values("ktaskfs_build_info") == ["1"], "the metrics are there")
    alert = 'ALERTS{alertname="KtaskfsGone"}'
    until(lambda: server.query(alert) == [], "no scrape is late")
    halt(mounted.pid)
    try:
        until(lambda: server.values("up") == ["0"] and server.query(alert) != [], "the alert is pending")
    finally:
        os.kill(mounted.pid, signal.SIGCONT)
    until(lambda: server.query(alert) == [], "the daemon answers again")


def expressions() -> dict[str, str]:
    """Every query of the dashboard, the alerts and the page about monitoring, by its place."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    found = {f"{each['title']}/{one['refId']}": one["expr"] for each in panels for one in each["targets"]}
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    page = (ROOT / "docs/how-to/monitoring.md").read_text()
    (found["page"],) = re.findall(r"((?:^    .*\bktaskfs_\w+\{.*\n)+)", page, re.MULTILINE)
    return found | {each["alert"]: each["expr"] for each in rules}


def test_every_query_names_metrics_that_there_are(mounted: Mount, exporter: str) -> None:
    there = {series.partition("{")[0] for series in scraped(exporter)}
    values: dict[str, set[str]] = {"instance": set()}
    for series in scraped(exporter):
        for label, value in re.findall(r"(\w+)=\"([^\"]*)\"", series):
            values.setdefault(label, set()).add(value)
    queries = expressions()
    assert len(queries) > 20
    for where, query in queries.items():
        used = set(METRIC.findall(query))
        assert used, where
        assert used <= there, where
        grouped = re.findall(r"by \(([^)]*)\)", query)
        matched = re.findall(r"(\w+)(?:=~|=|!=)\"", query)
        assert {label.strip() for each in grouped for label in each.split(",")} | set(matched) <= values.keys(), where
        for label, sign, value in re.findall(r"(\w+)(=~?)\"([^$\"]+)\"", query):
            pattern = re.compile(value if sign == "=~" else re.escape(value))
            assert any(pattern.fullmatch(each) for each in values[label]), f"{where}: no {label} is {value}"


def test_the_rules_do_what_their_tests_say_and_each_has_one(programs: Programs) -> None:
    tried = run(str(programs.promtool), "test", "rules", "alerts.test.yml", cwd=MONITORING)
    assert tried.status == 0, tried
    tests = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    fires = {one["alertname"] for each in tests for one in each["alert_rule_test"] if one["exp_alerts"]}
    quiet = {one["alertname"] for each in tests for one in each["alert_rule_test"] if not one["exp_alerts"]}
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    assert {each["alert"] for each in rules} == fires == quiet


def test_the_queries_of_the_dashboard_are_promql(programs: Programs, tmp_path: Path) -> None:
    queries = [each.replace("$__rate_interval", "5m") for each in expressions().values()]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = run(str(programs.promtool), "check", "rules", str(tmp_path / "rules.yml"))
    assert checked.status == 0, checked
    assert f"{len(queries)} rules found" in checked.out


def test_the_dashboard_is_what_its_script_writes() -> None:
    made: str = runpy.run_path(str(MONITORING / "dashboard.py"))["dashboard"]()
    assert (MONITORING / "dashboard.json").read_text() == made, "run: python docs/monitoring/dashboard.py"
