# shellcheck shell=sh
# What the examples share: sourced by each, which has set `me` (its name) and `here` (its directory).
# shellcheck disable=SC2034,SC2154
nestrt=$(readlink -f "$here/../../hooks/nestrt")
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
passed=0 failed=0

# fail TEXT: this host cannot run the example
fail() { echo "$me: $*" >&2; exit 5; }

# need COMMAND=PACKAGE...: root, and Debian's packages for commands that are not there; none of them starts its daemon
need() {
  [ "$(id -u)" = 0 ] || fail "root is needed to make control groups: sudo $0"
  missing=
  for pair in /usr/bin/python3=python3 "$@"; do
    command -v "${pair%=*}" >/dev/null || missing="$missing ${pair#*=}"
  done
  if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || fail "install$missing (this machine has no apt-get)"
    echo "installing$missing"
    policy=/usr/sbin/policy-rc.d # invoke-rc.d(8)
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=$policy; }
    # shellcheck disable=SC2086
    log=$( (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing) 2>&1)
    status=$?
    rm -f ${made:+"$made"}
    [ $status = 0 ] || fail "apt-get could not install$missing: $(echo "$log" | tail -n 1)"
  fi
  /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "Python 3.11 or later is needed (Debian 12, Ubuntu 24.04); /usr/bin/python3 is $(/usr/bin/python3 -V 2>&1)"
}

# scratch [tmpfs]: a directory $work; the example removes it
scratch() {
  work=$(mktemp -d "/tmp/nestrt-$me-XXXXXX") && chmod 755 "$work" || exit 1
  [ -z "${1:-}" ] || mount -t tmpfs -o mode=755 "nestrt-$me" "$work" || exit 1
}
unscratch() { while mountpoint -q "$work"; do umount -l "$work"; done; rm -rf "$work"; }

# compile DIRECTORY: a copy of nestrt, which guests cannot write; else each start there compiles it again
compile() { env -u PYTHONDONTWRITEBYTECODE /usr/bin/python3 -m compileall -q "$1" && "$1/../hooks/nestrt" version >/dev/null; }

# check TEXT COMMAND...: whether COMMAND succeeds
check() {
  text=$1; shift
  if "$@"; then passed=$((passed + 1)); echo "  PASS  $text"; else failed=$((failed + 1)); echo "  FAIL  $text"; fi
}
show() { echo "  # $*"; }
# quote TEXT: what a command said
quote() { printf '%s\n' "$1" | sed 's/^/      /'; }
has() { printf '%s\n' "$1" | grep -qE -e "$2"; }
lacks() { ! has "$@"; }
# wait_until SECONDS COMMAND...
wait_until() {
  tries=$(($1 * 10)); shift
  until "$@"; do tries=$((tries - 1)); [ $tries -gt 0 ] || return 1; sleep 0.1; done
}
# result: the last line, and the exit status
result() { echo "$passed passed, $failed failed"; [ "$failed" = 0 ]; }

# own_namespaces ARGUMENT...: once more from the start, with mounts that nobody else sees
own_namespaces() {
  [ -n "${NESTRT_EXAMPLE:-}" ] || NESTRT_EXAMPLE=1 exec unshare --mount --propagation private "$0" "$@"
}

# own_podman: a podman with store, state and configuration in $work, runc its runtime, and nestrt's plugin in its hooks;
# its containers' groups are below $parent
own_podman() {
  parent=/nestrt-$me-$$
  mkdir "$work/containers" "$work/containers/tmp" "$work/hooks"
  export CONTAINERS_CONF="$work/containers/containers.conf" CONTAINERS_REGISTRIES_CONF=/dev/null
  export CONTAINERS_STORAGE_CONF="$work/containers/storage.conf"
  containers_conf >"$CONTAINERS_CONF"
  storage_conf overlay "$work/containers" >"$CONTAINERS_STORAGE_CONF"
  show "nestrt hooks install --engine podman"
  "$nestrt" hooks install --engine podman --prefix "$work/hooks" >/dev/null || exit 1
}
# What does not ask for systemd, nor for limits above those of whoever starts it.
containers_conf() {
  cat <<END
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1000:1000"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
[network]
network_backend = "netavark"
END
}
storage_conf() { printf '[storage]\ndriver = "%s"\ngraphroot = "%s/root"\nrunroot = "%s/run"\n' "$1" "$2" "$2"; }
podman() {
  /usr/bin/podman --tmpdir "$work/containers/tmp" --hooks-dir "$work/hooks/usr/local/share/nestrt/hooks.d" "$@"
}
# In a guest: what it reads as its limit, and what it hears when it raises it.
read_limit="cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
raise_limit="cd /sys/fs/cgroup; [ -d memory ] && cd memory; echo max >memory.max; echo -1 >memory.limit_in_bytes"
# short TEXT: with containers' ids as podman ps shows them
short() { printf '%s\n' "$1" | sed -E 's/([0-9a-f]{12})[0-9a-f]{52}/\1/g'; }
# without NAME...: remove containers, and what is left of the parent of their groups
without() {
  podman rm --force --time 0 "$@" >/dev/null 2>&1
  wait_until 10 podman rm --force --ignore --time 0 "$@" >/dev/null 2>&1
  for group in "/sys/fs/cgroup$parent" /sys/fs/cgroup/*"$parent"; do [ ! -d "$group" ] || rmdir "$group"; done
}
