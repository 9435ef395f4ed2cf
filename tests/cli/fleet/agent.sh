#!/bin/bash
# What a host says, by its name; run instead of ssh: agent.sh LOG HOST ktaskfs run --json ...
log=$1 host=$2
shift 2
said=$(printf '%q ' "$@")
echo "begin $host $said" >>"$log"
tell() { # STATE PERCENT
    printf '{"name": "vm", "state": "%s", "done": %d, "total": 100, "units": "pages", "percent": %d.0, ' "$1" "$2" "$2"
    printf '"speed": 7, "finish_usec": null, "elapsed_usec": 5, "errno": %d, "error": "no room", ' "$((28 * ($2 == 13)))"
    printf '"error_position": null, "result": %s, "stale": false}\n' "${3:-null}"
}
follow() { # until it is told to cancel; what is not for the task is written down
    tell running "$1"
    while read -r line; do
        echo "$host $line" >>"$log"
        if [ "$line" = cancel ]; then
            tell cancelled "$1"
            exit 3
        fi
    done
}
status=0
case $host in
    good*) tell running 50 && tell done 100 "\"digest\\n\"" ;;
    banner*) echo "Welcome to $host" && tell done 100 ;;
    odd*) echo '{"state": 7}' && echo '[1]' && echo 'null' && echo '{"state": "done"}' ;;
    full*) printf '{"name": null, "state": "refused", "errno": 28, "error": "no room on %s", "command": "x"}\n' "$host" && status=1 ;;
    failed*) tell failed 13 && status=1 ;;
    dead*) echo "ssh: connect to host $host port 22: No route to host" && status=255 ;;
    lost*) tell running 5 && echo "Timeout, server $host not responding." && status=255 ;;
    bare*) echo 'bash: line 1: ktaskfs: command not found' && status=127 ;;
    slow*) follow $((10#${host//[!0-9]/} % 100)) ;;
    back*) tell running 1 && read -r line && echo '{"name": "vm", "command": "cancel", "errno": 107, "error": "away"}' && follow 1 ;;
    deaf*) tell running 1 && while read -r line; do echo "$host $line" >>"$log"; done ;;
    away*) tell running 1 | sed 's/"stale": false/"stale": true/' && while read -r line; do :; done ;;
    mute*) exec <&- && tell running 1 && until grep -q "^slow1 cancel" "$log"; do sleep 0.1; done && tell done 100 ;;
    silent*) ;;
    endless*) tell running 1 && exec tr '\0' x </dev/zero ;;
    late*) tell running 1 && exec >&- 2>&- && sleep 1.5 ;;
    shut*) tell running 1 && exec sleep 600 >&- 2>&- ;;
    noisy*) exec tr '\0' x </dev/zero ;;
    quick*) tell running 90 && sleep 0.2 && tell done 100 ;;
esac
echo "end $host" >>"$log"
exit $status
