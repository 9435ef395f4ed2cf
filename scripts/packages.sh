# What scripts/setup.sh and bench/peers.sh have in common; they read it with `.`. $me is the name that messages begin with.
# shellcheck shell=sh

fail() {
    echo "${me:?}: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "run this as root, or install sudo: root's rights are needed for: $*"
    fi
}

# Prints those of its arguments that are not installed; nothing where it is not a Debian.
missing() {
    command -v dpkg-query >/dev/null || return 0
    for package in "$@"; do
        # shellcheck disable=SC2016 # dpkg's variable, not the shell's
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

# apt-get waits for dpkg's lock, but not for that of the lists, which apt-daily.service takes after a boot.
update_lists() {
    left=60
    until words=$(as_root apt-get -q update 2>&1); do
        case $words in
            *'Could not get lock'*) [ $((left -= 1)) -gt 0 ] || fail "$words" ;;
            *) fail "$words" ;;
        esac
        sleep 5
    done
}

install_packages() {
    echo "${me:?}: installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
}

# Installs packages, and starts none of their services now: policy-rc.d(8) forbids it to the package scripts. sshd and
# munged are not started at the next boot either, if this brought them.
install_unstarted() {
    policy=/usr/sbin/policy-rc.d
    [ ! -e $policy ] || policy= # somebody else's is left as it is
    # shellcheck disable=SC2016 # for the other shell
    [ -z "$policy" ] || as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >$0 && chmod 755 $0' $policy
    trap '[ -z "$policy" ] || as_root rm -f $policy' EXIT
    trap 'exit 130' HUP INT TERM
    install_packages "$@"
    trap - EXIT HUP INT TERM
    [ -z "$policy" ] || as_root rm -f $policy
    command -v systemctl >/dev/null || return 0
    case " $* " in *" openssh-server "*) as_root systemctl --quiet disable ssh.service ssh.socket || : ;; esac
    case " $* " in *" munge "*) as_root systemctl --quiet disable munge.service slurmctld.service slurmd.service || : ;; esac
}

# Under sudo, give the owner of the clone what was made in it.
give_to_owner() {
    [ "$(id -u)" != 0 ] || chown -R --reference=. .venv ./*.egg-info
}
