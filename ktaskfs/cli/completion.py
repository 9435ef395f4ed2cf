"""``ktaskfs completion``: candidates for the command line from the live mount, and a script for each shell."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from typing import TYPE_CHECKING, Final

from ktaskfs.cli.arguments import MOUNT_OPTIONS, command_first
from ktaskfs.cli.mounted import Mounted
from ktaskfs.cli.tables import rows
from ktaskfs.errors import KtaskfsError
from ktaskfs.units import unescaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SCRIPTS: Final[Mapping[str, str]] = {
    "bash": r"""# Completion of ktaskfs for bash; `eval "$(ktaskfs completion bash)"`.
_ktaskfs() {
    local words=('') quote='' before='' prefix each i line=${COMP_LINE:0:COMP_POINT}
    for ((i = 0; i < ${#line}; i++)); do # not COMP_WORDS, which is cut at = and :
        each=${line:i:1}
        if [[ $each == "$quote" ]]; then
            quote=''
        elif [[ $each == \\ && $quote != \' ]]; then
            words[-1]+=${line:$((++i)):1}
        elif [[ ! $quote && $each == [\'\"] ]]; then
            quote=$each before=${words[-1]}
        elif [[ ! $quote && $each == [[:blank:]] ]]; then
            [[ ! ${words[-1]} ]] || words+=('')
        else
            words[-1]+=$each
        fi
    done
    prefix=${words[-1]%"${words[-1]##*[=:]}"} # bash replaces what is after these only, or after an open quote
    [[ ! $quote ]] || prefix=$before
    COMPREPLY=()
    while IFS= read -r each; do
        each=${each#"$prefix"}
        case $quote in
            \') each=${each//\'/\'\\\'\'} ;;
            \") each=$(sed 's/[\\"$`]/\\&/g' <<<"$each") ;;
            *) printf -v each %q "$each" ;;
        esac
        [[ $quote || $each == *[=/] ]] || each+=' '
        COMPREPLY+=("$each")
    done < <("${words[0]}" completion words "${words[@]:1}" 2>/dev/null)
    # bash closes the quote of the only one; the blank comes after that.
    [[ ! $quote || ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} == *[=/] ]] || compopt +o nospace
}
complete -o nospace -F _ktaskfs ktaskfs
""",
    "zsh": r"""#compdef ktaskfs
# Completion of ktaskfs for zsh; as a file _ktaskfs in fpath, or `eval "$(ktaskfs completion zsh)"` after compinit.
_ktaskfs() {
    local -a found
    found=("${(@f)$(${words[1]} completion words "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    compadd -S '' -- ${(M)found:#*[=/]}
    compadd -- ${found:#*[=/]}
}
if [ "$funcstack[1]" = _ktaskfs ]; then _ktaskfs "$@"; else compdef _ktaskfs ktaskfs; fi
""",
    "fish": r"""# Completion of ktaskfs for fish; `ktaskfs completion fish | source`.
function __ktaskfs_candidates
    ktaskfs completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete --command ktaskfs --no-files --arguments '(__ktaskfs_candidates)'
""",
}
GLUED: Final = (f"{MOUNT_OPTIONS[1]}=", MOUNT_OPTIONS[0])
"""The beginnings of a word that ends in the mount."""
BEFORE_END: Final = ("queued", "starting", "running", "paused")
STATES_FOR: Final[Mapping[str, Sequence[str]]] = {
    "wait": BEFORE_END,
    "cancel": BEFORE_END,
    "kill": BEFORE_END,
    "pause": ("running",),
    "resume": ("paused", "failed", "cancelled", "interrupted"),
    "set": ("new", *BEFORE_END, "failed", "cancelled", "interrupted"),
}
"""The states in which a command applies; other commands apply to all tasks."""
CHANGEABLE: Final = ("max_threads=", "nice=", "rate_max=")
"""Parameters that can be set while a task runs."""


def completion(given: argparse.Namespace, top: argparse.ArgumentParser) -> int:
    """Print the script of a shell, or the candidates for the last of ``given.words``, one per line."""
    if given.shell in SCRIPTS:
        print(SCRIPTS[given.shell], end="")
        return 0
    for each in candidates(given.words or [""], top):
        if "\n" not in each:  # it would be two candidates
            sys.stdout.buffer.write(os.fsencode(f"{each}\n"))  # a name of a file need not be UTF-8
    return 0


def candidates(words: Sequence[str], top: argparse.ArgumentParser) -> list[str]:
    """The candidates for the last of the words after ``ktaskfs``; an unfinished one ends in = or /."""
    *before, current = words
    if before and before[-1] in MOUNT_OPTIONS:
        return _mounts(current)
    if (glued := _glued(current)) and current not in MOUNT_OPTIONS:
        return [f"{glued}{each}" for each in _mounts(current.removeprefix(glued))]
    before = command_first(before)
    commands = next(action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    if not before:
        return _beginning_with(current, [*commands, *MOUNT_OPTIONS, "--help", "--version"])
    command = commands.get(before[0])
    if command is None:
        return []
    options = {name: action for action in command._actions for name in action.option_strings}
    option = options.get(before[-1])
    if option is not None and option.nargs is None:
        return _of_option(option, current)
    if current.startswith("-"):
        name, equals, value = current.partition("=")
        if equals and name in options:
            return [f"{name}={each}" for each in _of_option(options[name], value)]
        return _beginning_with(current, options)
    if before[0] == "completion":
        return _beginning_with(current, SCRIPTS)
    positional = next((action for action in command._actions if not action.option_strings), None)
    if positional is None or positional.choices:
        return _beginning_with(current, positional.choices if positional else [])
    if before[0] == "mount" or "--files" in before:
        return _paths("", current)
    given = [
        word
        for last, word in itertools.pairwise(before)
        if not word.startswith("-") and (last not in options or options[last].nargs is not None)
    ]
    try:
        return _of_mount(Mounted(_mount(before, options), patience=0), before[0], given, current)
    except KtaskfsError:  # nothing is mounted there
        return []


def _of_option(option: argparse.Action, current: str) -> list[str]:
    if option.dest == "mount":
        return _mounts(current)
    if option.dest == "hosts":
        *_, last = re.split(r"[,!&^]", current)
        return [f"{current[: len(current) - len(last)]}{each}" for each in _beginning_with(last, _known_hosts())]
    if option.dest == "topology":
        return _paths("", current)
    return _beginning_with(current, option.choices or [])


def _mounts(current: str) -> list[str]:
    """The mount points of ktaskfs."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as stream:
        lines = [line.split() for line in stream]
    return _beginning_with(current, [unescaped(line[1]) for line in lines if line[2] == "fuse.ktaskfs"])


def _known_hosts() -> list[str]:
    """The configured and known hosts of ssh(1), as far as their names are readable."""
    home = os.path.expanduser("~/.ssh")
    names: dict[str, None] = {}
    for path in (f"{home}/config", "/etc/ssh/ssh_config"):
        for line in _lines(path):
            words = line.replace("=", " ", 1).split()
            if words and words[0].lower() == "host":
                names.update(dict.fromkeys(each for each in words[1:] if not set(each) & set("*?!")))
    for line in _lines(f"{home}/known_hosts"):
        if line[:1].isalnum():  # not a hash, a mark or a comment
            names.update(dict.fromkeys(line.split()[0].split(",")))
    return list(names)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read().splitlines()
    except OSError:
        return []


def _mount(before: Sequence[str], options: Mapping[str, argparse.Action]) -> str:
    """The last mount in the words, or the default."""
    found = str(options["--mount"].default)
    for word, after in zip(before, [*before[1:], ""], strict=True):
        if word in MOUNT_OPTIONS:
            found = after
        elif glued := _glued(word):
            found = word.removeprefix(glued)
    return found


def _glued(word: str) -> str:
    """The beginning of a word that ends in the mount; empty for other words."""
    return next((each for each in GLUED if word.startswith(each)), "")


def _of_mount(mounted: Mounted, command: str, given: Sequence[str], current: str) -> list[str]:
    """Candidates from the mount, after the words ``given`` without options. With --hosts this host's mount is used."""
    if command == "run":
        return _of_spec(mounted, given, current)
    if command == "set" and given and "=" not in current:
        return _beginning_with(current, [*CHANGEABLE, *_tasks(mounted, command, given)])
    return _beginning_with(current, _tasks(mounted, command, given))


def _tasks(mounted: Mounted, command: str, given: Sequence[str]) -> list[str]:
    found = rows(mounted.read("info/tasks"))
    states = STATES_FOR.get(command)
    return [each["name"] for each in found if (states is None or each["state"] in states) and each["name"] not in given]


def _of_spec(mounted: Mounted, given: Sequence[str], current: str) -> list[str]:
    """An operation, a parameter that is not given yet, or a value."""
    if not given:
        return _beginning_with(current, mounted.directories("operations"))
    parameters = {row["name"]: row["type"] for row in rows(mounted.read(f"operations/{given[0]}/parameters"))}
    key, equals, value = current.partition("=")
    if not equals:
        already = {word.partition("=")[0] for word in given}
        return _beginning_with(current, [f"{name}=" for name in parameters if name not in already])
    kind = parameters.get(key, "")
    if kind == "path":
        return _paths(f"{key}=", value)
    return [f"{key}={each}" for each in _beginning_with(value, _values(mounted, key, kind))]


def _values(mounted: Mounted, key: str, kind: str) -> list[str]:
    """The values of a parameter, if its type or the machine limits them."""
    if key == "size":
        return list(dict.fromkeys(row["size"] for row in rows(mounted.read("info/hugepages"))))
    if kind == "cpulist":
        return [row["node"] for row in rows(mounted.read("info/nodes"))]
    if kind == "0/1":
        return ["0", "1"]
    words = kind.split("|")
    return words if len(words) > 1 and words[0] not in ("number", "size", "address") else words[1:]


def _paths(prefix: str, current: str) -> list[str]:
    """Files and directories whose path begins so."""
    directory, name = os.path.split(current)
    try:
        with os.scandir(directory or ".") as entries:
            found = [f"{each.name}/" if each.is_dir() else each.name for each in entries]
    except OSError:
        return []
    hidden = name.startswith(".")
    return sorted(
        f"{prefix}{os.path.join(directory, each)}"
        for each in found
        if each.startswith(name) and (hidden or not each.startswith("."))
    )


def _beginning_with(current: str, words: Iterable[str]) -> list[str]:
    return [each for each in words if each.startswith(current)]
