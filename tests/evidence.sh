#!/usr/bin/env bash
# The long proofs, which the suite has in short (tests/README.md): about twenty minutes on two cores with nothing else
# to do. Needs what tests/run.sh has set up. Goes on after a failure, and ends with its status.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv-tests/bin/python}
status=0
run() { echo "== $*"; "$python" "$@" || status=1; }

run -m pytest -n 0 tests/evidence
run tests/evidence/visitors.py --visitors 50
run tests/evidence/page_cost.py
exit $status
