#!/usr/bin/env bash
# Sets up .venv for `make demo` and `make test`. Safe to run again: a stamp keyed on this file, pyproject.toml
# and the Python version makes a second run return at once.
#
#   PYTHON=/path/to/python3.12   the interpreter to build .venv with
#   SPATIA_TORCH="torch==2.13.0" what to ask pip for, taken as it is (no check for a CPU build)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
STAMP=$VENV/.spatia-setup
TORCH_PIN="torch==2.13.0"  # what the figures in the README were measured with
CPU_INDEX="https://download.pytorch.org/whl/cpu"

LOG=.cache/setup.log  # what pip and apt-get say

say() { echo "[setup] $*" >&2; }
die() { echo "[setup] error: $*" >&2; exit 1; }

# pip_install <arguments...>: quiet; its last lines are shown when it fails. Python compiles what it imports, pip need not compile all
pip_install() {
    mkdir -p .cache
    echo "pip install $*" >>$LOG
    $VENV/bin/python -m pip install --disable-pip-version-check --no-compile "$@" >>$LOG 2>&1 && return
    grep -v '^WARNING: Location' $LOG | tail -n 12 >&2
    return 1
}

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.13 python3.14 python; do
        if command -v "$candidate" >/dev/null 2>&1 && python_is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found. Install one (Debian, Ubuntu: apt-get install python3) or name it: PYTHON=/path/to/python3 make setup"
}

# stamp <python>: what this set-up depends on
stamp() {
    cat pyproject.toml scripts/setup.sh | "$1" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), sys.version.split()[0])'
}

if [ -x $VENV/bin/python ] && [ -f $STAMP ] && [ "$(cat $STAMP)" = "$(stamp $VENV/bin/python)" ]; then
    exit 0
fi

# Two makes at once would write into one .venv: the second waits for the first.
if [ -z "${SPATIA_SETUP_LOCKED:-}" ] && command -v flock >/dev/null 2>&1; then
    mkdir -p .cache
    SPATIA_SETUP_LOCKED=1 exec flock .cache/setup.lock bash scripts/setup.sh
fi

# as_root <command...>: run it as root where that needs no password; fails otherwise
as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true >/dev/null 2>&1; then
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    else
        return 1
    fi
}

# apt_install <packages...>: quiet, and never the reason that set-up stops
apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    as_root true || return 1
    say "installing $* with apt-get"
    mkdir -p .cache
    as_root apt-get install -y --no-install-recommends "$@" >>$LOG 2>&1 && return
    as_root timeout 300 apt-get update >>$LOG 2>&1 || return 1
    as_root timeout 600 apt-get install -y --no-install-recommends "$@" >>$LOG 2>&1
}

make_venv() {
    local python=$1 version
    "$python" -m venv $VENV >/dev/null 2>&1 && [ -x $VENV/bin/pip ] && return
    rm -rf $VENV
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # Debian and Ubuntu ship Python without ensurepip; the package python3.X-venv brings it.
    if apt_install "python$version-venv" || apt_install python3-venv; then
        "$python" -m venv $VENV >/dev/null 2>&1 && return
        rm -rf $VENV
    fi
    if "$python" -m virtualenv $VENV >/dev/null 2>&1; then return; fi
    die "$python cannot make a virtual environment (ensurepip is missing). Run: sudo apt-get install python$version-venv   and then make again"
}

has_nvidia() { [ -e /proc/driver/nvidia/version ] || { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }; }

# torch_is_lean <requirement>: would the configured index give a torch without CUDA libraries?
torch_is_lean() {
    $VENV/bin/python -m pip install --dry-run --ignore-installed --no-deps --quiet --report - "$1" 2>/dev/null | $VENV/bin/python -c '
import json, sys
try:
    item = json.load(sys.stdin)["install"][0]
except Exception:
    sys.exit(1)
needs = " ".join(item["metadata"].get("requires_dist", [])).lower()
version = item["metadata"]["version"]
linux_cuda = "+cpu" not in version and ("nvidia-" in needs or "cuda-" in needs or "triton" in needs)
sys.exit(sys.platform == "linux" and (linux_cuda or "+cu" in version or "+rocm" in version))'
}

install_torch() {
    if $VENV/bin/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then return; fi
    if [ -n "${SPATIA_TORCH:-}" ]; then
        pip_install "$SPATIA_TORCH" || die "pip could not install SPATIA_TORCH=$SPATIA_TORCH"
        return
    fi
    if has_nvidia; then
        say "NVIDIA driver found: installing $TORCH_PIN with CUDA"
        pip_install "$TORCH_PIN" || die "pip could not install $TORCH_PIN. Choose another: SPATIA_TORCH=torch make setup"
        return
    fi
    if torch_is_lean "$TORCH_PIN"; then
        say "installing $TORCH_PIN (CPU build, from the configured index)"
        pip_install "$TORCH_PIN" && return
    fi
    say "installing $TORCH_PIN (CPU build, from $CPU_INDEX)"
    pip_install --index-url "$CPU_INDEX" "$TORCH_PIN" && return
    die "no CPU build of $TORCH_PIN could be had, and gigabytes of CUDA are not wanted on a machine without an NVIDIA driver. \
Check the network, or choose yourself: SPATIA_TORCH=$TORCH_PIN make setup"
}

# open3d (RGB-D odometry) loads three system libraries that a bare Debian or Ubuntu lacks.
install_system_libraries() {
    command -v ldconfig >/dev/null 2>&1 || [ -x /sbin/ldconfig ] || return 0
    local known missing=() pair
    known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null || true)
    for pair in libusb-1.0.so.0:libusb-1.0-0 libGL.so.1:libgl1 libEGL.so.1:libegl1; do
        grep -q "${pair%%:*}" <<<"$known" || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    apt_install "${missing[@]}" || say "open3d needs system libraries that are missing here; run: sudo apt-get install ${missing[*]}"
}

PYTHON_FOUND=$(find_python)
if [ -x $VENV/bin/python ] && python_is_new_enough $VENV/bin/python; then
    say "updating $VENV"
else
    say "creating $VENV with $PYTHON_FOUND"
    rm -rf $VENV
    make_venv "$PYTHON_FOUND"
fi
install_torch
say "installing spatia and what it needs (a few minutes the first time)"
pip_install -e ".[dev]" || die "pip could not install the project; the lines above and $LOG say why"
install_system_libraries
stamp $VENV/bin/python >$STAMP
say "done"
