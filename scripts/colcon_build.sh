#!/usr/bin/env bash
# Builds the ROS 2 workspace: all of it where ROS 2 is sourced, otherwise its pure-Python packages with PyPI's colcon.
#   scripts/colcon_build.sh [arguments of `colcon build`]
#   scripts/colcon_build.sh --test     also `colcon test`: everything with ROS 2, else tests/packaging and one node's
# PYTHON chooses the interpreter (default: .venv/bin/python). Exit status 3: colcon cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
ENVIRONMENT=$ROOT/.venv-colcon
# Newer setuptools have no `setup.py develop`, which colcon needs.
REQUIREMENTS=(colcon-common-extensions colcon-ros "setuptools<80" wheel)
DR_PYTHON=${PYTHON:-.venv/bin/python}

say() { printf 'colcon: %s\n' "$*"; }
die() { printf 'colcon: failed: %s\n' "$*" >&2; exit 3; }

# Colcon lives apart: its pytest plug-ins and its old setuptools are not for .venv. A .pth file lends it the packages
# that are installed in .venv, so that what it builds can run; an editable dr_core is not among them, because the
# .pth files in there are not read: dr_core comes from the install space or not at all.
colcon_environment() {
    local lent
    lent=$(cat "$ENVIRONMENT"/lib/python3*/site-packages/lent.pth 2>/dev/null || true)
    if [ -d "$lent" ] && "$ENVIRONMENT/bin/python" -c 'import colcon_core, colcon_defaults, colcon_ros' 2>/dev/null; then
        return
    fi
    command -v "$DR_PYTHON" >/dev/null || die "no $DR_PYTHON; run make env"
    say "installing ${REQUIREMENTS[*]} into .venv-colcon"
    "$DR_PYTHON" -m venv --clear "$ENVIRONMENT" || die "run: $DR_PYTHON -m venv --clear .venv-colcon"
    "$ENVIRONMENT/bin/python" -m pip install --quiet --disable-pip-version-check "${REQUIREMENTS[@]}" ||
        die "see the error above; colcon comes from the package index"
    lent=$("$ENVIRONMENT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth
    "$DR_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$lent"
}

TEST=""
if [ "${1:-}" = --test ]; then
    TEST=yes
    shift
fi

if [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ]; then
    # Through the active python3, so that the nodes' first line names it, in a virtual environment too.
    colcon=(python3 -m colcon)
    python3 -c 'import colcon_core' 2>/dev/null || die "install colcon: apt-get install python3-colcon-common-extensions"
    selection=()
    say "ROS 2 $ROS_DISTRO is sourced: building all packages with $(command -v python3)"
else
    colcon_environment
    colcon=("$ENVIRONMENT/bin/python" -m colcon)
    # Ignored, not skipped: colcon refuses to build dr_nodes when a dependency that it knows is not built.
    selection=(--packages-ignore dr_interfaces)
    say "ROS 2 is not sourced: building dr_core and dr_nodes; dr_interfaces needs its ament_cmake and message generators"
fi

cd ros2_ws
export COLCON_DEFAULTS_FILE=$PWD/colcon_defaults.yaml
"${colcon[@]}" build "${selection[@]}" "$@"

if [ -n "$TEST" ]; then
    if [ ${#selection[@]} -eq 0 ]; then
        "${colcon[@]}" test
    else
        "${colcon[@]}" test "${selection[@]}" --packages-select dr_core --pytest-args tests/packaging
        "${colcon[@]}" test "${selection[@]}" --packages-select dr_nodes --pytest-args -k test_camera
    fi
    # `colcon test` itself succeeds whatever the tests say, and when there are none.
    "${colcon[@]}" test-result --verbose
    for package in dr_core dr_nodes; do
        grep -q 'tests="[1-9]' "build/$package/pytest.xml" || { say "no test of $package ran"; exit 1; }
    done
fi
