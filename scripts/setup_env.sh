#!/usr/bin/env bash
# Brings up .venv in the checkout: system libraries, Python packages, and this package in editable mode.
# Run by `make`; safe to run again. PYTHON=python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
CPU_INDEX=https://download.pytorch.org/whl/cpu
PATH=$PATH:/usr/sbin:/sbin # ldconfig

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: failed: %s\n' "$*" >&2; exit 1; }

# apt_install PACKAGE...: as root or through passwordless sudo; otherwise says what to run and returns 1.
apt_install() {
    local root=()
    if ! command -v apt-get >/dev/null; then
        say "missing system libraries; install what Debian calls: $*"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            say "missing system packages; run: sudo apt-get install $*"
            return 1
        fi
        root=(sudo -n)
    fi
    say "installing system packages: $*"
    "${root[@]}" apt-get update -qq || say "apt-get update failed; going on with the lists that are there"
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

# The first Python >= 3.10 that can make virtual environments, else the first >= 3.10.
find_python() {
    local name fallback=""
    for name in ${PYTHON:-python3.12 python3.11 python3.10 python3.13 python3}; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$name"
            return
        fi
        fallback=${fallback:-$name}
    done
    echo "$fallback"
}

system_libraries() {
    [ "$(uname -s)" = Linux ] || return 0
    local libraries wanted=()
    libraries=$(ldconfig -p)
    have() { [[ $libraries == *"$1"* ]]; }
    # OpenCV's wheel links against these.
    have libGL.so.1 || wanted+=(libgl1)
    have libgthread-2.0.so.0 || wanted+=(libglib2.0-0)
    # Off-screen rendering: EGL with Mesa's software driver.
    if ! have libEGL.so.1 || ! have libEGL_mesa.so.0 || ! compgen -G '/usr/lib*/*/dri/*_dri.so' >/dev/null; then
        wanted+=(libegl1 libegl-mesa0 libgl1-mesa-dri)
    fi
    [ ${#wanted[@]} -gt 0 ] || return 0
    if ! apt_install "${wanted[@]}"; then
        say "going on without them; dr doctor tells what does not work"
    elif ! have libEGL.so.1 && ! have libOSMesa.so; then
        # A second way to render, which newer distributions no longer have.
        apt_install libosmesa6 || say "no libosmesa6 here: EGL is the only way to render"
    fi
}

virtual_environment() {
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then
        say "using .venv ($(.venv/bin/python --version))"
        return
    fi
    local python
    python=$(find_python)
    if [ -z "$python" ]; then
        apt_install python3 python3-venv || die "no Python 3.10 or later; install one and run make again"
        python=$(find_python)
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        local version
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        apt_install "python$version-venv" || die "$python cannot make virtual environments; run the command above"
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || die "run: $python -m venv --clear .venv"
}

# The Linux wheel on PyPI brings several GB of CUDA packages; without a GPU the CPU build is what we want.
install_torch() {
    if .venv/bin/python -c 'import torch' 2>/dev/null; then
        return
    fi
    if [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
        say "no NVIDIA GPU: installing the CPU build of PyTorch $TORCH"
        if .venv/bin/pip install --quiet --retries 0 --timeout 10 --extra-index-url "$CPU_INDEX" "torch==$TORCH+cpu"; then
            return
        fi
        say "the CPU build cannot be had from $CPU_INDEX; installing the one of the package index, which may be large"
    else
        say "installing PyTorch $TORCH"
    fi
    .venv/bin/pip install --quiet "torch==$TORCH" || die "run: .venv/bin/pip install torch==$TORCH"
}

# For the tests of the RealSense camera, which play a recording: no camera is needed. There is no wheel for every
# machine; then those tests are skipped.
install_realsense() {
    local libraries
    if ! .venv/bin/pip install --quiet --editable '.[realsense]'; then
        say "no pyrealsense2 for this machine: going on without RealSense cameras"
        return
    fi
    libraries=$(ldconfig -p 2>/dev/null || true)
    if [ "$(uname -s)" = Linux ] && [[ $libraries != *libusb-1.0.so.0* ]]; then
        apt_install libusb-1.0-0 || say "going on without libusb, which pyrealsense2 needs"
    fi
}

system_libraries
virtual_environment
install_torch
say "installing dr_core and what it needs"
.venv/bin/pip install --quiet --editable '.[sim,embedded,test,dev]' || die "run: .venv/bin/pip install --editable '.[sim,embedded,test,dev]'"
install_realsense
# For the test of a sweep on a cluster; there is no wheel for every Python.
.venv/bin/pip install --quiet --editable '.[ray]' || say "no Ray for this machine: its test is skipped"
# For the tests of generated goal videos: about 260 MB, none of it weights.
.venv/bin/pip install --quiet --editable '.[genreward]' || say "no diffusers for this machine: the tests of generated goal videos are skipped"
.venv/bin/python -c 'import cv2, dr_core.cli, torch' ||
    die "see the error above; a missing lib*.so comes from: apt-get install libgl1 libglib2.0-0"
say "ready: $(.venv/bin/python -c 'import torch; print("PyTorch", torch.__version__)'); .venv/bin/dr doctor checks this machine"
