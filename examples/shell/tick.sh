#!/bin/sh
# Says the time once a minute.
set -eu

trap 'echo ended; exit 0' TERM
while true; do
	date
	sleep 60 &
	wait $!
done
