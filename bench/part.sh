# Sourced by the parts of `make bench`: the Python, the build, the vectors and the node that they need, and where their figures go.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/paths.sh"
source "$repository/scripts/node.sh"

part=$(basename "$0")
# A file of JSON.
out=$(realpath -m "${1:?usage: bench/$part OUT.json}")
cd "$repository"
export PYTHONDONTWRITEBYTECODE=1

# need_shared PATH...: ends the part when the shared data is not there.
need_shared() {
    local path
    for path in "$@"; do
        if [ -z "$shared" ] || [ ! -e "$shared/$path" ]; then
            say "$part: skipped, ../shared with its $path is not beside the clone"
            exit 0
        fi
    done
}

# use_python PACKAGE...: fetched once, into a folder of their own.
use_python() {
    local site
    site=$cache/bench/python-$(printf '%s\n' "$@" | sha256sum | cut -c 1-8)
    if [ ! -e "$site/.ready" ]; then
        say "$part: fetching $* with pip"
        python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to run what ragged is compared with" "install it (Debian and Ubuntu: python3-pip)"
        python3 -m pip install --quiet --root-user-action=ignore --upgrade --target "$site" "$@"
        touch "$site/.ready"
    fi
    export PYTHONPATH=$site
}

# What searching vectors is compared with, and what it takes.
use_vector_python() { use_python numpy orjson faiss-cpu hnswlib usearch matplotlib; }

# build ARGUMENT...: of cargo build.
build() {
    say "$part: building"
    with_heartbeat "still building" cargo build --release "${locked[@]}" "$@"
}

# use_vectors NAME DOCS_JSONL_GZ DURATION: makes the vectors of documents and of a thousand questions about them once, and again for another model
# or other documents. Their folder is then in $vectors. PRECISION=bf16 is faster on processors with AMX, and measures the same.
use_vectors() {
    local name=$1 documents=$2 duration=$3
    vectors=$cache/bench/vectors-$(cat "$model_dir/model.safetensors" "$documents" | sha256sum | cut -c 1-16)
    if [ -e "$vectors/.ready" ]; then return; fi
    build -p ragged-kernels --example embed_texts
    mkdir -p "$vectors"
    say "$part: embedding $name, once ($duration on 2 cores)"
    with_heartbeat "still embedding" "$CARGO_TARGET_DIR/release/examples/embed_texts" "$model_dir" "$documents" 1000 "$vectors" "${PRECISION:-f32}"
    touch "$vectors/.ready"
}

# A folder for what need not be kept, on the disk that is measured.
use_work_folder() {
    work=$(mktemp -d "$cache/bench/work-XXXXXX")
    trap 'stop_node; rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM HUP
}

# A node of its own, which ends with the part.
use_node() {
    use_work_folder
    start_node "$(free_address)" "$work/data" "$work/node.log"
    RAGGED_KEY=$(cat "$work/data/admin.key")
    export RAGGED_KEY NODE_PROCESS=$node
}
