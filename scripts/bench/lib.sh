# shellcheck shell=bash
# Shared by the benchmarks: a lab of hosts, the comparison in rounds, processor time of both sides.
# Sourced, not run.
#
# Settings, all by environment: ROUNDS (5 unless the script says otherwise), CREWBOSS (the release
# build, built if missing).
set -eu
PATH=$PATH:/usr/sbin:/sbin
BENCH=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")")
TOP=$(readlink -f "$BENCH/../..")
ROUNDS=${ROUNDS:-5}
ME=$(readlink -f "$0")

die() { echo "bench: $*" >&2; exit 1; }
note() { echo "# $*"; }
need() { local tool; for tool in "$@"; do command -v "$tool" >/dev/null || die "$tool is missing; scripts/setup --bench installs it"; done; }

# Starts a lab, runs this same script again where its hosts can be reached, and takes everything
# down at the end.
#   in_lab N [options of scripts/lab up]
in_lab() {
    if [ -n "${BENCH_LAB:-}" ]; then
        LAB=$BENCH_LAB W=$BENCH_WORK
        return
    fi
    need ssh cc awk
    # Without a word from the caller, the program that is measured is the one of this source, as it
    # is shipped.
    if [ -z "${CREWBOSS:-}" ]; then
        (cd "$TOP" && cargo build --release --quiet)
        CREWBOSS=$TOP/target/$(rustc -vV | sed -n 's/^host: //p')/release/crewboss
    fi
    W=$(mktemp -d "${TMPDIR:-/tmp}/crewboss-bench-XXXXXX")
    trap '"$TOP/scripts/lab" down --dir "$W/lab" >/dev/null; rm -rf --one-file-system "$W"' EXIT
    trap 'exit 130' INT TERM
    "$TOP/scripts/lab" up --dir "$W/lab" "$@" >/dev/null
    cc -O2 -o "$W/floor" "$BENCH/floor.c"
    cc -O2 -o "$W/delay" "$BENCH/delay.c"
    shared_config >"$W/ssh_config"
    printf '#!/bin/sh\nexec ssh -F %s "$@"\n' "$W/ssh_config" >"$W/ssh"
    chmod +x "$W/ssh"
    mkdir "$W/home"
    BENCH_LAB=$W/lab BENCH_WORK=$W CREWBOSS=$CREWBOSS HOME=$W/home PARALLEL_HOME=$W/home \
        env -u XDG_CONFIG_HOME -u XDG_DATA_HOME -u XDG_CACHE_HOME "$TOP/scripts/lab" run --dir "$W/lab" "$ME"
    exit
}

# The lab's hosts again by a second name each: host1m keeps one open connection and shares it. With
# RTT_MS, all through a relay that adds a round trip.
shared_config() {
    local host
    [ -z "${RTT_MS:-}" ] || printf 'Match all\n  ProxyCommand %s/delay %%h %%p %s\n' "$W" "$RTT_MS"
    for host in "$W"/lab/host*; do
        host=${host##*/}
        printf 'Host %sm\n  HostName 10.213.0.%d\n  ControlMaster auto\n  ControlPath %s/%%n\n  ControlPersist 60\n' \
            "$host" $((10 + ${host#host})) "$W"
    done
    cat "$W/lab/ssh_config"
}

# A crew file over N hosts with further lines for each:  crew N LINES
crew() {
    local i
    printf '[ssh]\nconfig = "%s/ssh_config"\n' "$W"
    for i in $(seq "$1"); do
        printf '[host.host%d]\nssh = "root@host%d"\nwork = "/srv/crewboss"\n%s\n' "$i" "$i" "${2:-}"
    done
}

on_host() { "$TOP/scripts/lab" exec --dir "$LAB" "$@"; }
open_masters() { local host; for host in "$@"; do echo "$W/ssh -fN ${host}m;"; done; }

# Processor time in clock ticks of everything that runs or ran on the hosts: a process that has
# ended counts for the one that waited for it, in the end the host's first process.
hosts_ticks() {
    local host total=0
    for host in "$LAB"/host*; do
        total=$((total + $(on_host "${host##*/}" sh -c "cat /proc/[0-9]*/stat 2>/dev/null" | sum_ticks)))
    done
    echo "$total"
}
sum_ticks() { sed 's/^.*) //' | awk '{ t += $12 + $13 + $14 + $15 } END { print t + 0 }'; }

# Runs one case once: PRE untimed, then CMD timed, in a PID view of its own, so that whatever they
# leave running ends with them and its processor time is seen. Sets WALL_S, NEAR_S, FAR_S. A command
# that measures itself writes seconds to $W/seconds, and that counts.
measure() {
    local before after ticks status
    rm -f "$W/seconds" "$W/ready" "$W/go"
    mkfifo "$W/ready" "$W/go"
    W=$W unshare --mount --pid --fork --kill-child --mount-proc bash "$BENCH/inside" "$1" "$2" \
        >"$W/figures" 2>"$W/errors" </dev/null &
    local pid=$!
    if ! read -r status <"$W/ready" || [ "$status" != ready ]; then wait "$pid" || true; return 1; fi
    before=$(hosts_ticks)
    echo go >"$W/go"
    wait "$pid" || return 1
    after=$(hosts_ticks)
    read -r WALL_S ticks <"$W/figures"
    [ ! -s "$W/seconds" ] || WALL_S=$(cat "$W/seconds")
    NEAR_S=$(ticks_to_s "$ticks") FAR_S=$(ticks_to_s $((after - before)))
}
ticks_to_s() { awk -v t="$1" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.3f", t / hz }'; }

# Compares cases in rounds, one of each in every round: compare LABEL [NAME PRE CMD]... The first
# case is what the others are compared with. Each ratio is the median of the rounds' ratios, so that
# a machine that is busier in one round than in the next does not matter. A case that fails is left
# out, with its words.
compare() {
    local label=$1 round i
    shift
    local names=() pres=() commands=()
    while [ $# -ge 3 ]; do names+=("$1") pres+=("$2") commands+=("$3"); shift 3; done
    : >"$W/rounds"
    note "$label: $ROUNDS rounds after one that does not count"
    for round in $(seq 0 "$ROUNDS"); do
        for i in "${!names[@]}"; do
            [ -n "${names[$i]}" ] || continue
            if measure "${pres[$i]}" "${commands[$i]}"; then
                [ "$round" = 0 ] || echo "${names[$i]} $round $WALL_S $NEAR_S $FAR_S" >>"$W/rounds"
            else
                note "${names[$i]} failed: $(tail -n 3 "$W/errors" | tr '\n' ' ')"
                names[i]=
            fi
        done
    done
    report "$label" "${names[0]}" <"$W/rounds"
}

report() { # report LABEL REFERENCE
    awk -v label="$1" -v reference="$2" '
        function median(list, n,    i, j, t) {
            for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] < list[j - 1]; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
            return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
        }
        { if (!($1 in seen)) { seen[$1] = 1; order[++cases] = $1 }
          wall[$1, $2] = $3; cpu[$1, $2] = $4 + $5; near[$1, $2] = $4; far[$1, $2] = $5; if ($2 > rounds) rounds = $2 }
        END {
            printf "%-22s %10s %8s %10s %8s   %s\n", label, "wall s", "x", "cpu s", "x", "(cpu near + far)"
            for (c = 1; c <= cases; c++) {
                name = order[c]; n = 0
                for (r = 1; r <= rounds; r++) if ((name, r) in wall) {
                    n++; w[n] = wall[name, r]; p[n] = cpu[name, r]; a[n] = near[name, r]; f[n] = far[name, r]
                    base = wall[reference, r]; rw[n] = base > 0 ? w[n] / base : 0
                    base = cpu[reference, r]; rp[n] = base > 0 ? p[n] / base : 0
                }
                printf "%-22s %10.3f %8.2f %10.2f %8.2f   (%.2f + %.2f)\n", name, median(w, n), median(rw, n), median(p, n), median(rp, n), median(a, n), median(f, n)
            }
        }'
}

aim() { note "aim: $*"; }
