#!/usr/bin/env bash
# Run a training in a pod: pod.sh WORK_DIR COMMAND...
# If one pod is evicted, the processes of all save and end with 0, which would count as done. This ends with 143 then,
# so that all come again.
set -uo pipefail
work_dir=$1
shift

# The first process of a container gets no signal that it does not ask for, and nor would the training.
trap 'kill -TERM "$training"' TERM
"$@" &
training=$!
wait "$training"
code=$?
# A signal ends wait before it ends the training.
while kill -0 "$training" 2>/dev/null; do
    wait "$training"
    code=$?
done

if [ "$code" -eq 0 ] && grep -q 'interrupted\.pth$' "$work_dir/last_checkpoint"; then
    code=143
fi
exit "$code"
