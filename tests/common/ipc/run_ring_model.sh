#!/usr/bin/env bash
# run_ring_model.sh: has spin check the ring's model (ring.pml), and that it can fail: without either
# side's second look after the waiter flag it must find the lost wake-up.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

check() { # MODEL -> spin's report
  spin -a "$1" >/dev/null
  cc -O1 -w -DSAFETY -DMEMLIM=1024 -o pan pan.c
  ./pan -m100000
}

report=$(check "$here/ring.pml")
grep -q 'errors: 0' <<<"$report" || { echo "$report"; exit 1; }
grep 'states, stored' <<<"$report"

sed 's/:: tail != at -> consumer_waits = 0/:: false -> consumer_waits = 0/' "$here/ring.pml" >no_look.pml
sed 's/known_head = head;  *\/\* after the fence \*\//skip;/' "$here/ring.pml" >no_look_producer.pml
sed 's/slot\[next % CAPACITY\] = next;/skip;/' "$here/ring.pml" >torn.pml
for broken in no_look no_look_producer torn; do
  cmp -s "$here/ring.pml" $broken.pml && { echo "$broken: the model did not change"; exit 1; }
  report=$(check $broken.pml)
  grep -q 'errors: 0' <<<"$report" && { echo "$broken: the fault was not found"; exit 1; }
done
echo "the ring's model holds, and its three planted faults are found"
