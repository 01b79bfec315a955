#!/bin/sh
# Builds the targets with AddressSanitizer and runs each for so many seconds (900 without a number): all of them, or those named.
#   fuzz/run.sh [SECONDS] [TARGET...]
# Needs a nightly toolchain, a C++ compiler, and `cargo install cargo-fuzz`.
set -eu
cd "$(dirname "$0")"
seconds=${1:-900}
[ $# -eq 0 ] || shift
./seeds.sh
# The versions that the product is built with.
cp ../Cargo.lock .
cargo +nightly fuzz build --fuzz-dir .
TMPDIR=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo /tmp)")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
for target in ${@:-$(cargo +nightly fuzz list --fuzz-dir .)}; do
    mkdir -p "artifacts/$target" "corpus/$target"
    "target/$(rustc +nightly -vV | sed -n 's/host: //p')/release/$target" "corpus/$target" \
        -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 \
        -print_final_stats=1 > "artifacts/$target/log" 2>&1 || failed="${failed:-} $target"
    echo "$target: $(grep -a stat::number_of_executed_units "artifacts/$target/log" || echo "see artifacts/$target/log")"
done
[ -z "${failed:-}" ] || { echo "failed:$failed (inputs and logs are in artifacts/)" >&2; exit 1; }
