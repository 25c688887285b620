# Sourced by the other scripts: makes an environment inside the checkout once, and again when its ingredients change.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
unset PYTHONHOME PYTHONPATH

# Prints a Python of version 3.11 or later that can make environments; $PYTHON is preferred.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3 python; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        if [[ -n "${PYTHON:-}" && "$candidate" == "$PYTHON" ]]; then
            echo "PYTHON=$PYTHON is no Python 3.11 or later with venv; unset it or name another one." >&2
            return 1
        fi
    done
    echo "Found no Python 3.11 or later with venv. Install one, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

# use_environment NAME EXTRAS: makes $root/.env-NAME with this package (editable) and puts it first in PATH.
use_environment() {
    local folder="$root/.env-$1" extras="$2" python stamp
    python="$(find_python)"
    stamp="$("$python" --version) $root $(cat "$root/pyproject.toml" "$root/nnunet_ad.pth" | cksum)"
    if [[ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]]; then
        echo "Making the environment $folder (once; a few minutes, mostly for torch)"
        "$python" -m venv --clear "$folder"
        "$folder/bin/python" -m pip install --disable-pip-version-check --editable "$root$extras"
        echo "$stamp" >"$folder/stamp"
    fi
    export PATH="$folder/bin:$PATH"
}
