#!/bin/sh
# Says plainly what is missing before an environment is made: check-python.sh PYTHON
python=$1
if [ -z "$python" ] || ! "$python" -c 'import sys' 2>/dev/null; then
    echo "error: no Python found. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is $("$python" -V 2>&1); PrivDFS needs Python 3.10 or newer." \
        "Name another: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2
    exit 1
fi
