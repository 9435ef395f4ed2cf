#!/bin/bash
# A hook of Slurm: allocates and zeroes huge pages before a job begins, and scrubs and frees them after it.
#
# Install it as /etc/slurm/ktaskfs on each node, and name it in slurm.conf as Prolog, Epilog and TaskProlog. A job with
# --gres=hugepages:N gets N pages on each of its nodes, as a file of its user whose path is $HUGEPAGES_FILE.
#
# If pages cannot be allocated or scrubbed, it drains the node, with the reason (sinfo -R).
set -u

hugetlbfs=/dev/hugepages     # the size of its pages is the unit of the GRES
directory=$hugetlbfs/slurm
file=$directory/$SLURM_JOB_ID
task=slurm-$SLURM_JOB_ID
lock=$directory/.$SLURM_JOB_ID

drain() { # REASON
    scontrol update "NodeName=$SLURMD_NODENAME" State=DRAIN "Reason=${1%%$'\n'*}"
    exit 1
}

carry_out() { # SPEC...
    local words
    words=$(ktaskfs run --quiet --if-exists=replace "$@" 2>&1) && return
    [ "$SLURM_SCRIPT_CONTEXT" != prolog_slurmd ] || rm -f "$file" # nobody has written to it
    drain "$words"
}

trusted() { # no user can put another file, or a link, in the place of a job's
    [ -n "$(find $directory -maxdepth 0 -type d -uid 0 ! -perm /022)" ]
}

require_trusted() {
    trusted || drain "ktaskfs: $directory is not a directory that only root may write to"
}

asked_pages() { # squeue prints only these fields, so no word of the user can pass for one
    local asked count
    # It names all jobs of an array, or parts of a job, whose number this one has.
    asked=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format='%A %b') || return
    count=$(sed -n "s/^$SLURM_JOB_ID //p" <<<"$asked" | tr , '\n' |
        sed -nE 's,^gres[:/]hugepages([:=]([0-9]+[A-Za-z]?))?$,=\2,p' | tail -n 1) # of several, Slurm takes the last
    [ -z "$count" ] && echo 0 && return
    count=${count#=}
    numfmt --from=iec "$(tr a-z A-Z <<<"${count:-1}")" # without a number it is one page, as in Slurm
}

prolog() {
    local pages
    pages=$(asked_pages) || drain "ktaskfs: squeue does not say how many huge pages job $SLURM_JOB_ID asks for"
    [ "$pages" -gt 0 ] || return 0
    [ "$(stat --file-system --format=%T $hugetlbfs)" = hugetlbfs ] || drain "ktaskfs: no hugetlbfs is mounted on $hugetlbfs"
    mkdir -p -m 755 $directory
    require_trusted
    rm -f "$file" # of an earlier job with this number, on a node that was drained
    (umask 077 && : >"$file")
    carry_out fallocate "path=$file" "length=$((pages * $(stat --file-system --format=%S $hugetlbfs)))" undo=1 "name=$task"
    chown "$SLURM_JOB_UID" "$file"
}

epilog() {
    local each page memory
    [ -e $directory ] || return 0
    require_trusted
    [ -e "$file" ] || return 0
    # Another epilog of the job may be at work, one of slurmd or one by hand. No user may open the lock, and so keep it.
    umask 077
    exec 9>"$lock" && flock 9 || drain "ktaskfs: cannot lock $lock"
    trap 'rm -f "$lock"' EXIT
    # Slurm may have ended a slow prolog or epilog, whose task still runs. Its end does not matter: the file is scrubbed in
    # any case.
    for each in "$task" "$task-*"; do ktaskfs wait --quiet "$each" >/dev/null 2>&1; done
    [ -e "$file" ] || return 0
    # The job may have made its file larger than all memory: to clear such a file would take days.
    page=$(stat --file-system --format=%S "$file")
    memory=$(sed -nE 's/^MemTotal: +([0-9]+) kB$/\1/p' /proc/meminfo)
    truncate --size="<$((memory * 1024 / page * page))" "$file" || drain "ktaskfs: cannot shorten $file"
    carry_out clear "path=$file" "name=$task-scrub"
    carry_out free "path=$file" unlink=1 "name=$task-free"
}

case $SLURM_SCRIPT_CONTEXT in
    prolog_slurmd) prolog ;;
    epilog_slurmd) epilog ;;
    prolog_task) [ ! -e "$file" ] || ! trusted || echo "export HUGEPAGES_FILE=$file" ;;
esac
