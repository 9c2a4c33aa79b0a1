#!/bin/sh
# Succeeds when the UI and the application both answer.
set -eu
base=${1:-http://localhost:8080}
wget -q -O /dev/null "$base/"
wget -q -O /dev/null "$base/api/health"
