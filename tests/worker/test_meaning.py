"""A worker decides once for which operation of a name its spec is."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ktaskfs.host.cgroups import GroupMounts
from ktaskfs.host.kernel import Kernel
from ktaskfs.operations.base.operation import Operation
from ktaskfs.operations.base.parameters import PATH, TaskParameters, choice, parameter
from ktaskfs.operations.base.shared_word import SharedWord
from ktaskfs.progress import Requests, create_page
from ktaskfs.span import NO_NODE, Node
from ktaskfs.units import BYTES
from ktaskfs.worker import protocol
from ktaskfs.worker.run import Worker
from tests.support.forked import run_forked
from tests.support.pages import SHAPE

if TYPE_CHECKING:
    from pathlib import Path

    from ktaskfs.operations.base.plan import Plan, Preparation


class OfFile(TaskParameters):
    path: str = parameter(PATH, "what to count")
    colour: str = parameter(choice("white"), "of the file", default="white")


class OfDirectory(TaskParameters):
    path: str = parameter(PATH, "what to count")
    colour: str = parameter(choice("red"), "of the directory", default="red")


class CountFile(Operation[Any]):
    name = "count"
    target = "a file"
    description = "Count."
    units = BYTES
    parameters: type[TaskParameters] = OfFile

    def prepare(self, preparation: Preparation[Any]) -> Plan:
        """While it prepares, somebody puts a file in place of the directory, or the other way round."""
        path = preparation.parameters.path
        os.rename(path, f"{path}.away")
        os.rename(f"{path}.other", path)
        control = preparation.control(lambda start, end: None, least=1, most=8)
        return preparation.plan((Node(0, 8, NO_NODE),), control, lambda outcome: "")


class CountDirectory(CountFile):
    target = "a directory"
    parameters = OfDirectory

    def means(self, parameters: Any) -> bool:
        return os.path.isdir(parameters.path)


def defaults(directory: Path) -> dict[str, str]:
    """Those that a worker reports for ``directory/path``. It starts a thread, so it has a process."""
    page = create_page(str(directory / "page"), SHAPE, Requests())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = protocol.StartRequest("t1", "count", {"path": str(directory / "path")}, None, None, {}, 2)
    word = SharedWord([CountDirectory(), CountFile()])
    ours.send(b"no")
    Worker(request, word, Kernel.open(), [page, theirs.detach()], GroupMounts({})).carry_out()
    answer = protocol.decode(ours.recv(protocol.MESSAGE_MAX))
    assert isinstance(answer, protocol.Ready), answer
    return dict(answer.defaults)


@pytest.mark.parametrize(("there", "colour"), [("directory", "red"), ("file", "white")])
def test_a_target_that_is_exchanged_meanwhile(tmp_path: Path, there: str, colour: str) -> None:
    """The defaults that are shown are those of the operation that runs."""
    names = {"directory": "path.other", "file": "path.other"} | {there: "path"}
    (tmp_path / names["directory"]).mkdir()
    (tmp_path / names["file"]).touch()
    assert run_forked(lambda: defaults(tmp_path)) == {"colour": colour}
