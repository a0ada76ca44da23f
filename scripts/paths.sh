# Sourced by every script: where things live outside the repository, and how scripts speak.
# shellcheck shell=bash
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ragged
user_data=${XDG_DATA_HOME:-$HOME/.local/share}/ragged
model_name=all-MiniLM-L6-v2
model_dir=${RAGGED_MODEL_DIR:-$user_data/models/$model_name}

# One target folder for all clones: C++ dependencies are compiled once.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

# Data for measurements; not part of the project (CONTRIBUTING.md, "Shared data").
shared=${RAGGED_SHARED:-$repository/../shared}
if [ -d "$shared/data" ]; then shared=$(cd "$shared" && pwd); else shared=; fi

mkdir -p "$cache" "$user_data"

say() { printf '==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# Cargo is strict about Cargo.lock where nobody could commit a change to it.
locked=()
if [ -n "${CI:-}" ]; then locked=(--locked); fi

# Lets what is started from now on load NVIDIA's compiler for kernels: tests compile them, without a GPU.
use_nvrtc() {
    local folder
    folder=$("$repository/scripts/install-nvrtc")
    [ -z "$folder" ] || export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# Runs a command, and says every minute that it is still at work; on a terminal cargo shows its progress by itself.
with_heartbeat() {
    local what=$1 heartbeat status=0
    shift
    if [ -t 2 ]; then
        "$@"
        return
    fi
    (
        begun=$SECONDS said=0
        while sleep 2 && kill -0 $$ 2>/dev/null; do
            minutes=$(((SECONDS - begun) / 60))
            if [ "$minutes" -gt "$said" ]; then
                note "$what, $minutes min so far"
                said=$minutes
            fi
        done
    ) &
    heartbeat=$!
    "$@" || status=$?
    kill "$heartbeat" 2>/dev/null || true
    wait "$heartbeat" 2>/dev/null || true
    return "$status"
}
