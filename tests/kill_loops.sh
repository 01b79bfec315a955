#!/bin/sh
# Kills eval, merge and train so often as asked (500 times each without a number), at other moments in every run, and compares what
# they end with. The tests of the same names do so for seconds.
#   tests/kill_loops.sh [KILLS]
set -eu
cd "$(dirname "$0")/.."
J1_KILLS="${1:-500}" exec cargo test --test integration kill -- --nocapture --test-threads 1
