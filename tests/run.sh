#!/usr/bin/env bash
# The whole test suite, from nothing: a virtual environment of its own, the development requirements, a Chromium
# if none is found, then lint, types and tests. Arguments go to pytest: `bash tests/run.sh
# -n 0 tests/unit` (tests/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-tests
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# uv is quicker, but reads no pip.conf: where it does not find something, pip does.
{ command -v uv >/dev/null && uv pip install --quiet --python "$venv/bin/python" -r requirements-dev.txt; } ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt

if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null && ! command -v chromium-browser >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
    else
        "$venv/bin/python" -m playwright install chromium
    fi
fi

"$venv/bin/ruff" check .
"$venv/bin/mypy"
"$venv/bin/python" -m pytest "$@"
