# Sourced by scripts that start a node of their own and end it again.
# shellcheck shell=bash

node= # process id

is_taken() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

free_address() {
    local port
    for port in $(shuf -i 20000-29999 -n 50); do
        if ! is_taken "127.0.0.1:$port"; then
            echo "127.0.0.1:$port"
            return
        fi
    done
    fail "found no free port on 127.0.0.1"
}

# start_node ADDRESS DATA_DIR LOG: builds nothing; returns when the node is ready. The commands then talk to this node.
start_node() {
    local listen=$1 log=$3 begun=$SECONDS
    export RAGGED_DATA_DIR=$2 RAGGED_MODEL_DIR=$model_dir RAGGED_HTTP_LISTEN=$listen RAGGED_URL=http://$listen
    # Beside the port of the API: nodes of several runs do not meet.
    export RAGGED_CLUSTER_LISTEN=${RAGGED_CLUSTER_LISTEN:-${listen%:*}:$((${listen##*:} + 1))}
    export PATH=$CARGO_TARGET_DIR/release:$PATH
    unset RAGGED_KEY RAGGED_KEY_FILE # they would name another node
    mkdir -p "$(dirname "$log")"
    # In a session of its own: Ctrl-C reaches the script, which then ends the node once and waits for it.
    setsid ragged serve >"$log" 2>&1 </dev/null &
    node=$!
    until ragged health >/dev/null 2>&1; do
        if ! kill -0 "$node" 2>/dev/null; then
            node=
            tail -n 5 "$log" >&2
            fail "the node ended while starting; its log: $log"
        fi
        if [ $((SECONDS - begun)) -ge 60 ]; then
            ragged health >&2 || true
            fail "the node was not ready after 60 s; its log: $log"
        fi
        sleep 0.1
    done
}

stop_node() {
    trap '' INT TERM HUP
    if [ -n "$node" ] && kill -TERM "$node" 2>/dev/null; then
        say "stopping the node"
        wait "$node" || true
    fi
    node=
}
