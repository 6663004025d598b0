#!/usr/bin/env bash
# proto/ is written by `quantd schema`; fail when a table changed and proto/ did not.
set -euo pipefail
quantd=$1 source=$2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$quantd" schema --out "$out"
status=0
for f in openapi.json events.json; do
    diff -u "$source/proto/$f" "$out/$f" || status=1
done
[ $status = 0 ] || echo "proto/ is behind the tables: run  quantd schema --out proto" >&2
exit $status
