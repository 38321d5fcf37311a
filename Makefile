# make test | faults | soak | demo | lint | type | bench | bench-calibration | bench-ros | ros-build | clean
# The first target that needs it sets up .venv (scripts/setup_env.sh); PYTHON=python3.12 chooses the interpreter.
SHELL := /bin/bash
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.stamp

.PHONY: env demo test faults soak lint type bench bench-calibration bench-ros ros-build clean

env: $(STAMP)

$(STAMP): setup.py scripts/setup_env.sh $(wildcard calibration/dr_calibration/__init__.py)
	bash scripts/setup_env.sh
	@touch $@

demo: $(STAMP)
	PATH="$(BIN):$$PATH" bash examples/demo.sh $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q

# Every fault injected at least 20 times, and all campaigns; writes docs/faults.md anew. Under an hour on two
# cores that do nothing else; ARGS="--only 33 34". With `pip install atheris` in .venv the campaign `guided` runs too.
faults: $(STAMP)
	$(BIN)/python -m tests.faults $(ARGS)

# The whole graph with random faults for 30 minutes; ARGS="--minutes 3". Figures and a plot of memory in runs/soak.
soak: $(STAMP)
	$(BIN)/python -m tests.faults.soak $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

type: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	@set -e; shopt -s nullglob; files=(benchmarks/*_speed.py); \
	if [ $${#files[@]} -eq 0 ]; then echo "no benchmarks yet"; fi; \
	for file in "$${files[@]}"; do echo "$(BIN)/python $$file"; $(BIN)/python "$$file"; done

# Errors of the calibration against rendered truth; ARGS="--only hand-eye" for a part of it.
bench-calibration: $(STAMP)
	$(BIN)/python benchmarks/calibration.py $(ARGS)

# About 12 minutes and 20 GB of disk for a while; ARGS="--only transport --seconds 10" for a part of it.
bench-ros: $(STAMP)
	$(BIN)/python benchmarks/ros_graph.py $(ARGS)

# All packages where ROS 2 is sourced, otherwise the pure-Python ones with colcon in .venv-colcon.
ros-build: $(if $(AMENT_PREFIX_PATH),,$(STAMP))
	bash scripts/colcon_build.sh

clean:
	rm -rf .venv .venv-colcon build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log
