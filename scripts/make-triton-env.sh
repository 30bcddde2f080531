#!/bin/sh
# Lays out the tritonserver that lies in the nvidia-pytriton wheel so that it runs as a plain command:
#
#   make-triton-env.sh VENV     VENV has the wheel installed; afterwards VENV/bin/tritonserver works.
#
# The wheel holds the server and its Python backend, but the backend's stub, one for each Python version, lies apart,
# and the stub has to be told where this Python's shared library and packages are.
set -eu
venv=$(cd "$1" && pwd)
python=$venv/bin/python

eval "$("$python" - <<'PY'
import shlex, sys, sysconfig
get = sysconfig.get_config_var
for name, value in {
    "version": f"{sys.version_info.major}.{sys.version_info.minor}",
    "site": sysconfig.get_path("platlib"),
    "library": f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0",
    "folders": " ".join(filter(None, [get("LIBDIR"), f"{get('LIBDIR')}/{get('MULTIARCH')}", get("LIBPL")])),
}.items():
    print(f"{name}={shlex.quote(value)}")
PY
)"
server=$site/pytriton/tritonserver
stub=$server/python_backend_stubs/$version/triton_python_backend_stub
if [ ! -e "$stub" ]; then
    echo "error: the tritonserver wheel has no stub for Python $version. Name another: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
libdir=
for folder in $folders; do
    if [ -e "$folder/$library" ]; then
        libdir=$folder
        break
    fi
done
if [ -z "$libdir" ]; then
    echo "error: $library, which Triton's Python backend loads, was not found in: $folders." \
        "On Debian or Ubuntu: apt install libpython$version" >&2
    exit 1
fi

backends=$venv/lib/tritonserver/backends
mkdir -p "$backends/python"
cp "$server/backends/python/libtriton_python.so" "$server/backends/python/triton_python_backend_utils.py" "$stub" \
    "$backends/python/"

# The stub reads no PYTHON… variables: it takes the Python that it finds on PATH, packages included. Models are read,
# never written beside, so that a served repository stays the one that its manifest lists.
echo 'import sys; sys.dont_write_bytecode = True' >"$site/no_bytecode.pth"
cat >"$venv/bin/tritonserver" <<WRAPPER
#!/bin/sh
# Written by scripts/make-triton-env.sh: Triton with the Python backend of this environment. This Triton is old, so it
# listens on this machine only, unless told otherwise.
export LD_LIBRARY_PATH='$site/nvidia_pytriton.libs:$libdir'"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export PATH='$venv/bin:'"\$PATH"
exec '$server/bin/tritonserver' --backend-directory='$backends' \\
    --grpc-address=127.0.0.1 --http-address=127.0.0.1 "\$@"
WRAPPER
chmod +x "$venv/bin/tritonserver"
