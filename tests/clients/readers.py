"""Programs that read a file, each as a shell command that prints the contents."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.clients.newest import Utilities

FILE: Final = '"$1"'
COPY: Final = '"$2"'
"""A place for a copy, which is printed and removed."""
PYTHON: Final = {
    "open": "out.write(open(name, 'rb').read())",
    "copyfile": "shutil.copyfile(name, copy); out.write(open(copy, 'rb').read()); os.unlink(copy)",
    "sendfile": "sendfile(os.open(name, os.O_RDONLY), os.open(copy, os.O_RDWR | os.O_CREAT, 0o600)); "
    "out.write(open(copy, 'rb').read()); os.unlink(copy)",
    "os.read": "fd = os.open(name, os.O_RDONLY); out.write(os.read(fd, os.fstat(fd).st_size))",
    "lines": "out.writelines(open(name, 'rb'))",
}
_PYTHON: Final = """
import os, shutil, sys
name, copy, out = *sys.argv[1:], sys.stdout.buffer
def sendfile(source, target):
    while os.sendfile(target, source, None, 1 << 20):
        pass
{}
"""


def _python(script: str) -> str:
    return f"{sys.executable} -I -S -c '{_PYTHON.format(script).replace(chr(39), chr(34))}' {FILE} {COPY}"


def _copied(command: str) -> str:
    return f"{command} {FILE} {COPY} && cat {COPY} && rm -f {COPY}"


def text_readers(newest: Utilities) -> dict[str, str]:
    """Each gets a file as $1 and a free path as $2."""
    gnu, uutils, busybox = newest.gnu, newest.uutils, newest.busybox
    many = "-n 1000000"
    return {
        **{f"cat {name}": f"{command} {FILE}" for name, command in _each("cat", newest).items()},
        **{f"cat < {name}": f"{command} < {FILE}" for name, command in _each("cat", newest).items()},
        **{f"cat | {name}": f"{command} {FILE} | cat" for name, command in _each("cat", newest).items()},
        **{f"tail {name}": f"{command} {many} {FILE}" for name, command in _each("tail", newest).items()},
        **{f"head {name}": f"{command} -c 1000000 {FILE}" for name, command in _each("head", newest).items()},
        **{f"cp {name}": _copied(command) for name, command in _each("cp", newest).items()},
        **{f"python {name}": _python(script) for name, script in PYTHON.items()},
        "tail -c, uutils": f"{uutils('tail')} -c +1 {FILE}",
        "tail -c, GNU": f"{gnu('tail')} -c 1000000 {FILE}",
        "dd, busybox": f"{busybox('dd')} if={FILE} bs=512 2> /dev/null",
        "dd": f"dd if={FILE} bs=4096 status=none",
        "tar": f"tar -c -h -P -f - {FILE} | tar -x -O -P -f -",
        "tar, busybox": f"busybox tar -c -h -f - {FILE} 2> /dev/null | tar -x -O -f -",
        "rsync": _copied("rsync --copy-links"),
        "rsync, whole": _copied("rsync --copy-links --archive --checksum"),
        "perl": f"perl -pe 1 {FILE}",
        "node": f"node -e 'process.stdout.write(fs.readFileSync(process.argv[1]))' {FILE}",
        "node, stream": f"node -e 'fs.createReadStream(process.argv[1]).pipe(process.stdout)' {FILE}",
        "sed": f"sed '' {FILE}",
        "grep": f"grep --text '' {FILE} || :",
        "awk": f"awk 1 {FILE}",
        "less": f"less {FILE}",
        "jq": f"jq --raw-input --raw-output . {FILE}",
        "bash": f"[ ! -s {FILE} ] || printf '%s\\n' \"$(< {FILE})\"",
        "size": f'head -c "$(stat -L -c %s {FILE})" {FILE}',
        "wc": f'[ "$(wc -c < {FILE})" = "$(cat {FILE} | wc -c)" ] && cat {FILE}',
    }


def _each(name: str, newest: Utilities) -> dict[str, str]:
    return {
        "GNU, installed": name,
        "GNU, newest": newest.gnu(name),
        "uutils": newest.uutils(name),
        "busybox, installed": f"busybox {name}",
        "busybox, newest": newest.busybox(name),
    }


def page_readers() -> dict[str, str]:
    """Programs whose first read is of one page. In the moment in which another program splices it may be refused."""
    return {"awk": f"awk 1 {FILE}", "dd": f"dd if={FILE} bs=4096 status=none"}


def stream_readers(newest: Utilities) -> dict[str, str]:
    """Programs that read a stream to its end."""
    return {
        **{f"cat {name}": f"{command} {FILE}" for name, command in _each("cat", newest).items()},
        **{f"cat | {name}": f"{command} {FILE} | cat" for name, command in _each("cat", newest).items()},
        **{f"tail {name}": f"{command} -n 1 {FILE}" for name, command in _each("tail", newest).items()},
        **{f"cp {name}": _copied(command) for name, command in _each("cp", newest).items()},
        **{f"python {name}": _python(PYTHON[name]) for name in ("open", "copyfile", "lines")},
        "perl": f"perl -pe 1 {FILE}",
        "node, stream": f"node -e 'fs.createReadStream(process.argv[1]).pipe(process.stdout)' {FILE}",
        "node": f"node -e 'process.stdout.write(fs.readFileSync(process.argv[1]))' {FILE}",
        "sed": f"sed '' {FILE}",
        "less": f"less {FILE}",
        "bash": f'while read -r line; do echo "$line"; done < {FILE}',
    }
