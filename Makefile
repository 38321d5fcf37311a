# make test | demo | lint | type | bench | ros-build | clean
# The first target that needs it sets up .venv (scripts/setup_env.sh); PYTHON=python3.12 chooses the interpreter.
SHELL := /bin/bash
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.stamp

.PHONY: env demo test lint type bench ros-build clean

env: $(STAMP)

$(STAMP): setup.py scripts/setup_env.sh $(wildcard calibration/dr_calibration/__init__.py)
	bash scripts/setup_env.sh
	@touch $@

demo: $(STAMP)
	PATH="$(BIN):$$PATH" bash examples/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .

type: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	@set -e; shopt -s nullglob; files=(benchmarks/*_speed.py); \
	if [ $${#files[@]} -eq 0 ]; then echo "no benchmarks yet"; fi; \
	for file in "$${files[@]}"; do echo "$(BIN)/python $$file"; $(BIN)/python "$$file"; done

# Needs colcon, which a sourced ROS 2 or `pip install colcon-common-extensions "setuptools<80"` provides.
ros-build:
	cd ros2_ws && COLCON_DEFAULTS_FILE="$$PWD/colcon_defaults.yaml" colcon build

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log
