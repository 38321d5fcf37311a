"""Recording of expert episodes: contents, resuming, refusals, killed and interrupted recordings."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("metaworld") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.errors import ConfigError, OutputInUseError, RenderingError, UserError
from dr_sim.rendering import select_backend

try:
    select_backend()
except RenderingError as error:
    pytest.skip(str(error), allow_module_level=True)

from dr_core.data.episodes import EpisodeWriter, find_episodes, read_episode, read_metadata
from dr_core.data.images import ImageRule
from dr_sim import record as recorder
from dr_sim.adroit_env import AdroitEnv
from dr_sim.commands import RecordExpert
from dr_sim.environments import default_render, make_environment
from dr_sim.record import EPOCH_NS, EpisodeJob, EpisodeResult, episode_path, record, record_episode

ROOT = Path(__file__).parents[2]
RULE = ImageRule(size=64, crop="none")


@pytest.fixture(scope="module")
def door():
    env = make_environment("door-close")
    yield env
    env.close()


def job_at(out, *, task="door-close", quality=0, seed=0):
    return EpisodeJob(task, quality, seed, default_render(task), episode_path(out, task, quality, seed), None)


def command(out, **fields):
    return RecordExpert(task=("door-close",), out=out, workers=1, **fields)


def test_an_episode_holds_what_was_seen_and_done(door, tmp_path):
    job = job_at(tmp_path)
    result = record_episode(door, job)
    episode = read_episode(job.path, rule=RULE)
    metadata = episode.metadata
    assert result.success and metadata.outcome == "success"
    assert (metadata.task, metadata.quality, metadata.seed, metadata.operator) == (
        "door-close",
        0,
        0,
        "scripted",
    )
    assert metadata.render == default_render("door-close").to_dict() and metadata.camera == "corner4"
    assert {"mujoco", "metaworld", "dr_core"} == set(metadata.versions)
    assert metadata.rate_hz == pytest.approx(40.0)

    steps = len(episode.actions)
    assert result.steps == steps and episode.frames.shape == (steps + 1, 64, 64, 3)
    assert np.array_equal(episode.stamps_ns, EPOCH_NS + 25_000_000 * np.arange(steps + 1))
    assert np.array_equal(episode.action_stamps_ns, episode.stamps_ns[:-1])

    # Replaying the actions gives the recorded frames, and the episode ends just after the first success.
    assert np.array_equal(door.reset(0)["image"], episode.frames[0])
    successes = []
    for action, frame in zip(episode.actions, episode.frames[1:], strict=True):
        observation, _, _, info = door.step(action)
        assert np.array_equal(observation["image"], frame)
        successes.append(info["success"])
    assert successes.index(True) == steps - 2


def test_random_actions_fail_and_are_recorded_as_such(door, tmp_path):
    job = job_at(tmp_path, quality=100, seed=5)
    assert not record_episode(door, job).success
    episode = read_episode(job.path, rule=RULE)
    assert episode.metadata.outcome == "failure" and episode.metadata.quality == 100
    assert episode.frames.shape[0] == 101 and (np.abs(episode.actions) <= 1).all()
    again = replace(job, path=tmp_path / "again")
    record_episode(door, again)
    assert np.array_equal(read_episode(again.path, rule=RULE).actions, episode.actions)


def test_recording_resumes_and_refuses_other_settings(tmp_path, capsys):
    assert command(tmp_path, episodes=2, quality=(0, 50)).run() == 0
    assert "door-close q50: 2 recorded, 0 skipped" in capsys.readouterr().out
    bags = {seed: read_episode(episode_path(tmp_path, "door-close", 0, seed), rule=RULE) for seed in (0, 1)}
    assert not np.array_equal(bags[0].frames[0], bags[1].frames[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mcap")}
    assert len(before) == 4

    assert command(tmp_path, episodes=3).run() == 0
    assert "door-close q0: 1 recorded, 2 skipped" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert len(find_episodes([tmp_path])) == 5

    with pytest.raises(OutputInUseError, match="render"):
        command(tmp_path, episodes=3, size=32).run()
    moved = episode_path(tmp_path, "door-close", 0, 1)
    moved.rename(episode_path(tmp_path, "door-close", 0, 9))
    with pytest.raises(OutputInUseError, match="seed"):
        command(tmp_path, seed=9, episodes=1).run()


class InlinePool:
    """Runs jobs at once in this process, as a pool of one worker would."""

    def submit(self, work, job):
        future = Future()
        future.set_result(work(job))
        return future


def record_with(monkeypatch, out, work, **options):
    @contextmanager
    def pool(workers):
        yield InlinePool()

    monkeypatch.setattr(recorder, "_worker_pool", pool)
    monkeypatch.setattr(recorder, "_work", work)
    renders = {"door-close": default_render("door-close")}
    defaults = {"episodes": 3, "seed": 10, "workers": 1, "adroit_weights": None}
    fixed = {"out": out, "renders": renders, "on_episode": lambda *progress: None}
    return record(["door-close"], [options.pop("quality", 0)], **fixed, **{**defaults, **options})


def test_failed_experts_are_kept_and_replaced(monkeypatch, tmp_path):
    seeds = []

    def every_third_fails(job):
        seeds.append(job.seed)
        return EpisodeResult(job.seed % 3 != 0, 50)

    (group,) = record_with(monkeypatch, tmp_path, every_third_fails, episodes=4)
    assert seeds == [10, 11, 12, 13, 14, 15][: len(seeds)] and group.complete
    assert (group.successes, group.failures, group.recorded) == (4, len(seeds) - 4, len(seeds))


def test_diluted_experts_are_recorded_whatever_their_outcome(monkeypatch, tmp_path):
    (group,) = record_with(monkeypatch, tmp_path, lambda job: EpisodeResult(False, 50), quality=50)
    assert group.recorded == 3 and group.failures == 3 and group.complete


def test_a_hopeless_expert_ends_the_recording(monkeypatch, tmp_path):
    (group,) = record_with(monkeypatch, tmp_path, lambda job: EpisodeResult(False, 50), episodes=1)
    assert not group.complete and group.failures == 12


def test_an_error_of_a_worker_reaches_the_user(monkeypatch, tmp_path):
    def fail(job):
        return EpisodeResult(False, 0, ("disk", "space", "none", "make some"))

    with pytest.raises(UserError, match="disk: expected space"):
        record_with(monkeypatch, tmp_path, fail)


def test_two_runs_may_not_share_an_output(monkeypatch, tmp_path):
    def second_run(job):
        with pytest.raises(OutputInUseError, match="lock"):
            command(tmp_path, episodes=1).run()
        return EpisodeResult(True, 1)

    record_with(monkeypatch, tmp_path, second_run, episodes=1)


def test_leftovers_are_reported_and_left_alone(door, tmp_path, capsys):
    job = job_at(tmp_path)
    record_episode(door, job)
    metadata = read_metadata(job.path)
    EpisodeWriter(episode_path(tmp_path, "door-close", 0, 1), metadata).write_image(1, np.zeros((8, 8, 3), np.uint8))
    leftover = tmp_path / "door-close" / "q0" / ".episode_1.recording"
    kept = {path: path.read_bytes() for path in leftover.iterdir()}

    record_episode(door, job_at(tmp_path, seed=1))
    assert read_metadata(episode_path(tmp_path, "door-close", 0, 1)).seed == 1
    assert command(tmp_path, episodes=2).run() == 0
    assert f"dr bag repair {leftover}" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in leftover.iterdir()} == kept
    names = sorted(path.name for path in leftover.parent.iterdir())
    assert names == [".episode_1.recording", "episode_0", "episode_1"]


def test_adroit_episodes_are_recorded_with_the_network_given(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [39, 4, 4, 28]
    arrays = {f"w{i}": rng.normal(size=(sizes[i + 1], sizes[i])) for i in range(3)}
    arrays |= {f"b{i}": rng.normal(size=sizes[i + 1]) for i in range(3)}
    arrays |= {
        "in_shift": np.zeros(39),
        "in_scale": np.ones(39),
        "out_shift": np.zeros(28),
        "out_scale": np.ones(28),
    }
    np.savez(tmp_path / "door_policy.npz", **arrays)
    env = AdroitEnv("adroit-door", episode_steps=4)
    job = replace(job_at(tmp_path, task="adroit-door"), adroit_weights=tmp_path)
    assert record_episode(env, job) == EpisodeResult(False, 4)
    env.close()
    episode = read_episode(job.path, rule=RULE)
    assert episode.frames.shape == (5, 64, 64, 3) and episode.actions.shape == (4, 28)
    assert episode.metadata.camera == "fixed" and episode.metadata.rate_hz == pytest.approx(50.0)
    assert {"mujoco", "gymnasium-robotics", "dr_core"} == set(episode.metadata.versions)


@pytest.mark.parametrize(
    "fields",
    [
        {"episodes": 0},
        {"seed": -1},
        {"workers": 0},
        {"quality": (101,)},
        {"quality": ()},
        {"task": ("door-clos",)},
    ],
)
def test_mistakes_are_refused_before_anything_is_written(fields, tmp_path):
    with pytest.raises(ConfigError):
        RecordExpert(**{"task": ("door-close",), "out": tmp_path / "out", **fields}).run()
    assert not (tmp_path / "out").exists()


def test_missing_adroit_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"hammer_policy\.npz"):
        RecordExpert(task=("adroit-hammer",), out=tmp_path / "out").run()


def start_recording(out):
    """A real recording of many episodes with two workers, and the moment its first bag is complete."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom dr_sim.commands import RecordExpert\n"
        "if __name__ == '__main__':\n"
        "    command = RecordExpert(task=('door-close',), out=Path(sys.argv[1]), episodes=50, workers=2)\n"
        "    try:\n        sys.exit(command.run())\n"
        "    except KeyboardInterrupt:\n        sys.exit(130)\n"
    )
    script = out.with_suffix(".py")
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), str(ROOT / "sim")])
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("door-close/q0/episode_*")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    return process


def group_is_gone(group, timeout_s=20):
    """Whether every process of the process group ends in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_killed_recording_leaves_its_earlier_bags_whole(tmp_path):
    out = tmp_path / "out"
    process = start_recording(out)
    process.kill()
    process.communicate()
    assert group_is_gone(process.pid)  # the workers do not outlive their parent
    whole = find_episodes([out])
    assert whole
    for path in whole:
        episode = read_episode(path, rule=RULE)
        assert episode.metadata.outcome == "success" and len(episode.frames) == len(episode.actions) + 1


def test_ctrl_c_leaves_whole_bags_only(tmp_path):
    out = tmp_path / "out"
    process = start_recording(out)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors and "Warning" not in errors
    assert group_is_gone(process.pid)
    assert not list(out.rglob(".*.recording"))
    for path in find_episodes([out]):
        assert read_metadata(path).outcome == "success"
