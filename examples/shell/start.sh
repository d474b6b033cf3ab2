#!/bin/sh
# Makes a page and serves it. Anything executable could be in this place: a script, or a program compiled elsewhere.
set -eu

mkdir -p public
echo "Powered by ${POWERED_BY:-Deis}" >public/index.html
echo OK >public/healthz
python3 -u -m http.server --directory public "${PORT:-5000}" &
trap 'kill $!' TERM
wait $! || echo ended
