#!/bin/bash
# The main job, shown with the commands a reader would type: mounts ktaskfs in a temporary directory, allocates and
# clears a file of huge pages with it, checks the result with other programs, and times it beside fallocate(1).
# Reserves huge pages if it may, at most a quarter of the free memory and 2 GiB, and gives them back; else uses tmpfs.
# Leaves nothing behind, whatever happens, and fails if it finds that it did.
set -eu

root=$(realpath "$(dirname "$0")/..")
if [ "$(id -u)" != 0 ] && command -v sudo >/dev/null; then
    if sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; then
        exec sudo "$root/scripts/demo.sh" # huge pages are root's to reserve
    fi
fi

export PATH="$root/.venv/bin:$PATH"
export LC_ALL=C
[ "$(id -u)" = 0 ] && prompt='#' || prompt='$'
most=$((2 << 30))

say() { printf '\n== %s\n' "$*"; }

# Show a command as at a prompt, then run exactly that text.
run() {
    printf '%s %s\n' "$prompt" "$1"
    eval "$1"
}

fail() {
    echo "demo: $*" >&2
    exit 1
}

pages() {
    cat "$pool/nr_hugepages"
}

resize() { # BY: adds pages or takes them off; sets $change to what came of it.
    # Others may change the pool too, and write a size that was right before: then a part of ours is missing, and is
    # asked for again. What they add or take off beyond it is theirs.
    local before got missing=$1
    change=0
    for _ in 1 2 3 4 5 6 7 8 9; do
        before=$(pages)
        echo $((before + missing)) 2>/dev/null >"$pool/nr_hugepages" || :
        got=$(($(pages) - before))
        if [ "$1" -gt 0 ]; then
            got=$((got < 0 ? 0 : got > missing ? missing : got))
        else
            got=$((got > 0 ? 0 : got < missing ? missing : got))
        fi
        change=$((change + got)) missing=$((missing - got))
        [ "$missing" != 0 ] || break
    done
}

must_be_done() { # TASK
    [ "$(cat "$mnt/tasks/$1/state")" = 'done' ] || fail "the task $1 did not get done: $(cat "$mnt/tasks/$1/error")"
}

at_most() { # NUMBER LIMIT
    echo $(($1 < $2 ? $1 : $2))
}

# ---- what must be put back, and how ----

dir=$(mktemp -d /tmp/ktaskfs.XXXXXX) # holds all that this makes, so that its name finds all that is left
mnt=$dir/mnt
huge=$dir/huge
shm=''
pool=''
added=0

processes_left() {
    local process
    for process in /proc/[0-9]*; do
        [ "$process" = "/proc/$$" ] || [ "$process" = "/proc/$BASHPID" ] ||
            ! { readlink "$process"/cwd "$process"/fd/* || :; tr '\0' '\n' <"$process/cmdline" || :; } 2>/dev/null |
            grep -qF "$dir" || echo "${process#/proc/}"
    done
}

is_clean() {
    [ -z "$(processes_left)" ] && ! grep -qF "$dir" /proc/self/mounts
}

soon() { # until COMMAND succeeds, or a minute: on a busy machine a process may end late
    local end=$((SECONDS + 60))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.02
    done
}

# shellcheck disable=SC2317 # called by the trap
put_back() {
    local status=$? unclean=0
    trap '' EXIT HUP INT TERM
    set +e
    if mountpoint -q "$mnt"; then
        echo cancel >"$mnt/tasks/control"
        soon umount_own "$mnt" || umount -l "$mnt"
    fi
    rm -f "$huge"/*
    if mountpoint -q "$huge"; then
        soon umount "$huge" || unclean=1
    fi
    if ! soon is_clean; then
        unclean=1
        echo "demo: left behind: processes $(processes_left | tr '\n' ' ')and mounts $(grep -cF "$dir" /proc/self/mounts)" >&2
        processes_left | xargs -r kill -9
    fi
    if [ "$added" -gt 0 ]; then
        resize "-$added"
        printf '\nGave back %s huge pages.\n' $((-change))
    fi
    rm -rf --one-file-system "$dir" ${shm:+"$shm"} || unclean=1
    if [ "$unclean" != 0 ]; then
        exit 1
    fi
    [ "$status" != 0 ] || printf '\nAll is as it was: no mount, process, file or setting is left.\n'
    exit "$status"
}

# shellcheck disable=SC2317
umount_own() {
    if [ "$(id -u)" = 0 ]; then umount "$1"; else fusermount3 -u "$1"; fi 2>/dev/null
}

trap put_back EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- the memory to work on ----

mkdir "$huge"
free=$(($(awk '/^MemFree:/ { print $2 }' /proc/meminfo) << 10))
size=$(at_most $((free / 4)) $most)

reserve() { # true if the pool of the smallest huge pages could be made larger, and the new pages mounted on $huge
    local kilobytes
    kilobytes=$(cd /sys/kernel/mm/hugepages 2>/dev/null && printf '%s\n' hugepages-* | tr -dc '0-9\n' | sort -n | head -n 1)
    pool=/sys/kernel/mm/hugepages/hugepages-${kilobytes}kB
    [ -w "$pool/nr_hugepages" ] || return 1
    page=$((kilobytes << 10))
    resize $((size / page))
    added=$((change > 0 ? change : 0))
    [ "$added" -ge 8 ] || return 1
    size=$((added * page))
    # min_size keeps these pages for this mount, and size keeps it from taking any that are not its own.
    mount -t hugetlbfs -o "pagesize=$page,size=$size,min_size=$size" none "$huge" 2>/dev/null
}

if reserve; then
    say "Reserved $added huge pages of $((page >> 20)) MiB ($((size >> 20)) MiB); they go back at the end"
else
    shm=$(mktemp -d /dev/shm/ktaskfs.XXXXXX)
    rmdir "$huge"
    ln -s "$shm" "$huge"
    huge=$shm
    size=$(at_most "$size" $((512 << 20))) # pages of 4 KiB take their time
    size=$(at_most "$size" $(($(df --output=avail -B1 "$shm" | tail -n 1) / 2)))
    size=$((size >> 21 << 21))
    say "Huge pages may not be reserved here, so this uses tmpfs ($((size >> 20)) MiB)"
fi
length=$((size >> 20))M
fallocate -l "$size" "$huge/warm-up" # the host of a virtual machine backs memory when it is first touched
rm "$huge/warm-up"

# ---- the main job ----

say 'Mount'
run "mkdir $mnt"
run "ktaskfs mount -o statedir=$dir/state $mnt"
run "ls $mnt"

say 'A tunable, as in /proc/sys: at most two threads for each task'
run "cat $mnt/debug/ktask_max_threads"
run "echo 2 > $mnt/debug/ktask_max_threads"
run "cat $mnt/debug/ktask_max_threads"

say 'Allocate and zero a file'
run "echo 'fallocate path=$huge/vm0 length=$length name=vm0' > $mnt/tasks/control"
run "cat $mnt/tasks/vm0/progress"
run "cat $mnt/tasks/vm0/wait"
run "cat $mnt/tasks/vm0/status"
run "cat $mnt/tasks/vm0/threads"

must_be_done vm0

say 'Are the blocks there? Ask programs that know nothing of ktaskfs'
run "stat -c '%s bytes, %b blocks of %B bytes' $huge/vm0"
run "du -h $huge/vm0"
[ $(($(stat -c '%b * %B' "$huge/vm0"))) = "$size" ] || fail 'blocks are missing'
run "cmp -n $size $huge/vm0 /dev/zero && echo all zero"

say 'Another program fills the memory, so that zero means something'
run "python3 -c 'import mmap, sys
with open(sys.argv[1], \"r+b\") as file, mmap.mmap(file.fileno(), 0) as memory:
    for start in range(0, len(memory), 1 << 20):
        memory[start : start + (1 << 20)] = b\"\\xff\" * (1 << 20)' $huge/vm0"
run "od -A d -t x1 $huge/vm0"
if cmp -s -n "$size" "$huge/vm0" /dev/zero; then fail 'the memory was not filled'; fi

say 'Clear it, in place'
run "echo 'clear path=$huge/vm0 name=vm0-clear' > $mnt/tasks/control"
run "cat $mnt/tasks/vm0-clear/progress"
run "cat $mnt/tasks/vm0-clear/wait"
must_be_done vm0-clear
run "cmp -n $size $huge/vm0 /dev/zero && echo all zero"
run "du -h $huge/vm0"

# ---- beside fallocate(1) ----

cpus_free() { # how many CPUs nobody has used for half a second, in hundredths
    local _ user nice system idle waiting rest busy_before idle_before
    read -r _ user nice system idle waiting rest </proc/stat
    busy_before=$((user + nice + system)) idle_before=$((idle + waiting))
    sleep 0.5
    read -r _ user nice system idle waiting rest </proc/stat
    idle=$((idle + waiting - idle_before))
    echo $(($(nproc) * 100 * idle / (user + nice + system - busy_before + idle + 1)))
}

compare_times() {
    say "The time of $length beside fallocate(1), on the same memory, the best of three in turn"
    rm "$huge/vm0"

    timed() { # NAME-OF-BEST TEXT: runs the text, keeps its least time in microseconds
        local start=${EPOCHREALTIME/./} took
        eval "$2"
        took=$((${EPOCHREALTIME/./} - start))
        [ "${!1:-$took}" -lt "$took" ] || printf -v "$1" '%s' "$took"
    }

    plain="fallocate -l $size $huge/plain"
    for round in 1 2 3; do
        ours="echo 'fallocate path=$huge/ours length=$length name=ours$round' > $mnt/tasks/control; cat $mnt/tasks/ours$round/wait"
        [ "$round" != 1 ] || printf '%s %s\n%s %s\n' "$prompt" "$plain" "$prompt" "$ours"
        timed plain_best "$plain"
        rm "$huge/plain"
        timed ours_best "$ours >/dev/null"
        must_be_done "ours$round"
        rm "$huge/ours"
    done
    # shellcheck disable=SC2154 # set by timed
    awk -v plain="$plain_best" -v ours="$ours_best" 'BEGIN {
        printf "fallocate(1)  %7.1f ms\nktaskfs       %7.1f ms   %.2f times as fast\n", plain / 1000, ours / 1000, plain / ours
    }'
}

cpus=$(cpus_free)
if [ "$cpus" -ge 150 ]; then
    compare_times
else
    say 'No comparison with fallocate(1)'
    printf 'Others use the CPUs: %d.%02d of %d are free. The task'"'"'s two threads need two to show what they save.\n' \
        $((cpus / 100)) $((cpus % 100)) "$(nproc)"
fi

say 'Unmount; the daemon ends with the mount'
if [ "$(id -u)" = 0 ]; then run "umount $mnt"; else run "fusermount3 -u $mnt"; fi
