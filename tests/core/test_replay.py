"""The replay against a slow list of episodes, and against kill -9, damage and full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dr_core.agent.replay import SPARE, Batch, Replay, ReplayError
from dr_core.errors import OutputInUseError

SHAPE, ACTIONS, NAMES = (4, 6, 3), 2, ("video", "success")
GAMMA = 0.9


@pytest.fixture(autouse=True, scope="module")
def no_waiting() -> Iterator[None]:
    """No test takes the power away, so none has to wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda file: None)
        patch.setattr(os, "fsync", lambda file: None)
        yield


class Episode(NamedTuple):
    """What ``Replay.add`` takes."""

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    rewards: dict[str, NDArray[np.float32]]
    terminal: bool


def episode(seed: int, length: int, terminal: bool = False) -> Episode:
    """Noise; its first action is ``seed``, its second one counts the steps: a transition tells which one it is."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length + 1, *SHAPE), dtype=np.uint8)
    actions = np.stack([np.full(length, seed), np.arange(length)], 1).astype(np.float32)
    rewards = {name: rng.normal(size=length).astype(np.float32) for name in NAMES}
    return Episode(frames, actions, rewards, terminal)


def open_replay(directory: Path, capacity: int = 200, **settings: Any) -> Replay:
    given = {"frame_shape": SHAPE, "action_size": ACTIONS, "discount": GAMMA, "reward_names": NAMES, **settings}
    return Replay(directory, capacity=capacity, **given)


def transition(one: Episode, t: int, n_step: int, stack: int) -> dict[str, NDArray[Any]]:
    """The transition from step ``t``, in the slow and obvious way."""
    length = len(one.actions)
    sums, k = dict.fromkeys(NAMES, 0.0), 0
    while k < n_step and t + k < length:
        for name in NAMES:
            sums[name] += GAMMA**k * float(one.rewards[name][t + k])
        k += 1

    def stacked(i: int) -> NDArray[np.uint8]:
        seen = [one.frames[max(0, j)].transpose(2, 0, 1) for j in range(i - stack + 1, i + 1)]
        return np.concatenate(seen)

    discount = 0.0 if one.terminal and t + k == length else GAMMA**k
    return {
        "frames": stacked(t),
        "next_frames": stacked(t + k),
        "actions": one.actions[t],
        "discounts": np.float32(discount),
        **{name: np.float32(value) for name, value in sums.items()},
    }


def check(batch: Batch, episodes: dict[int, Episode], n_step: int, stack: int) -> set[tuple[int, int]]:
    """Compare every transition with the slow one; returns which (episode, step) there were."""
    drawn: list[tuple[int, int]] = [(number, t) for number, t in batch.actions.astype(int).tolist()]
    want = {(number, t): transition(episodes[number], t, n_step, stack) for number, t in set(drawn)}
    got = {**batch._asdict(), **batch.rewards}
    del got["rewards"], got["features"]
    for name, values in got.items():
        expected = np.stack([want[one][name] for one in drawn])
        in_memory = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values  # channels last
        assert values.dtype == expected.dtype and in_memory.flags.c_contiguous
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    return set(drawn)


def steps_of(episodes: dict[int, Episode]) -> set[tuple[int, int]]:
    return {(number, t) for number, one in episodes.items() for t in range(len(one.actions))}


def ring(episodes: dict[int, Episode], capacity: int) -> dict[int, Episode]:
    """The newest whole episodes whose frames fit."""
    room, held = capacity, {}
    for number in reversed(episodes):
        room -= len(episodes[number].frames)
        if room < 0:
            break
        held[number] = episodes[number]
    return held


@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=12),
    st.integers(14, 80),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_transitions_are_those_of_a_slow_list_of_episodes(
    shapes: list[tuple[int, bool]], capacity: int, n_step: int, stack: int
) -> None:
    episodes = {i: episode(i, length, terminal) for i, (length, terminal) in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        with open_replay(Path(folder), capacity, n_step=n_step, frame_stack=stack) as replay:
            for one in episodes.values():
                replay.add(*one)
            held = ring(episodes, capacity)
            assert (len(replay), replay.episodes, replay.added) == (len(steps_of(held)), len(held), len(episodes))
            batch, digest = replay.sample(1500, np.random.default_rng(0)), replay.digest()
            assert check(batch, held, n_step, stack) == steps_of(held)
        with open_replay(Path(folder), capacity, n_step=n_step, frame_stack=stack) as replay:
            assert replay.skipped == () and replay.digest() == digest and replay.added == len(episodes)
            again = replay.sample(1500, np.random.default_rng(0))
            for name, value in batch.rewards.items():
                np.testing.assert_array_equal(again.rewards[name], value)
            np.testing.assert_array_equal(again.next_frames, batch.next_frames)


def test_every_transition_is_equally_likely_and_the_generator_decides(tmp_path: Path) -> None:
    lengths = [1, 2, 40, 3, 7, 50, 1, 30]
    with open_replay(tmp_path, 120) as replay:
        for i, length in enumerate(lengths):
            replay.add(*episode(i, length))
        draws = replay.sample(100_000, np.random.default_rng(7)).actions
        _, counts = np.unique(draws, axis=0, return_counts=True)
        same = replay.sample(100_000, np.random.default_rng(7)).actions
        other = replay.sample(100_000, np.random.default_rng(8)).actions
    bins = sum(lengths[3:])
    assert len(counts) == bins
    chi_square = ((counts - 1e5 / bins) ** 2 / (1e5 / bins)).sum()
    # χ² of bins - 1 degrees of freedom has variance twice as much: within 4 standard deviations.
    assert abs(chi_square - (bins - 1)) < 4 * np.sqrt(2 * (bins - 1))
    np.testing.assert_array_equal(draws, same)
    assert not np.array_equal(draws, other)


def test_a_million_frames_fit_13_gb_and_stay_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"capacity": 1_000_000, "action_size": 26, "reward_names": ("video", "success", "other")}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12 * 10**9))
    with pytest.raises(ReplayError, match=r"12\.79 GB of free disk space for 1000000 frames; found 12\.00 GB"):
        Replay(tmp_path, **settings)
    Replay(tmp_path, **{**settings, "capacity": 900_000}).close()
    (tmp_path / "replay.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=13 * 10**9))

    def private_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    length, rng = 1000, np.random.default_rng(0)
    frames = rng.integers(0, 256, (length + 1, 64, 64, 3), dtype=np.uint8)
    rewards = {name: np.zeros(length) for name in settings["reward_names"]}
    before = private_kb()
    with Replay(tmp_path, **settings) as replay:
        for _ in range(6):
            replay.add(frames, np.zeros((length, 26)), rewards, terminal=False)
        for _ in range(20):
            replay.sample(256, rng)
        assert private_kb() - before < 40_000, "74 MB of frames are held in memory"
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 13e9
        # Each frame is there once.
        assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 1.1 * 6 * frames.nbytes


def test_an_episode_is_in_the_index_only_when_its_data_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    pwrite = os.pwrite

    def note(what: str, file: int) -> None:
        done.append(f"{what} {Path(os.readlink(f'/proc/self/fd/{file}')).stem}")

    def write(file: int, data: Any, offset: int) -> int:
        note("write", file)
        return pwrite(file, data, offset)

    with open_replay(tmp_path) as replay:
        monkeypatch.setattr(os, "pwrite", write)
        monkeypatch.setattr(os, "fdatasync", lambda file: note("wait", file))
        replay.add(*episode(0, 9))
    data = ["write frames", "wait frames", "write steps", "wait steps"]
    assert done == ["write episodes", *data, "write episodes", "wait episodes"]


def write_for_ever(directory: str, capacity: str, wait: str) -> None:
    """Go on adding ``numbered`` episodes and say so, until killed; the main function of another process."""
    if wait == "no":
        os.fdatasync = lambda fd: None
    with open_replay(Path(directory), int(capacity)) as replay:
        while True:
            number = replay.added
            replay.add(*numbered(number))
            print(number, flush=True)


def numbered(number: int) -> Episode:
    return episode(number, 5 + number % 23, number % 3 == 0)


@pytest.fixture
def writer(repository: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start ``write_for_ever`` in a process of its own."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        code = "import sys; from tests.core.test_replay import write_for_ever; write_for_ever(*sys.argv[1:])"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(repository)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start


def test_killed_at_random_instants_it_opens_with_all_committed_episodes(
    writer: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    rng, capacity = np.random.default_rng(0), 32 * 30
    with open_replay(tmp_path, capacity) as replay:
        for number in range(100):
            replay.add(*numbered(number))
        assert replay.episodes < 100, "the ring has gone round"
    for wait in ("yes", "no") * 3:
        process = writer(tmp_path, capacity, wait)
        assert process.stdout is not None
        try:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
        finally:
            process.kill()
            *_, last = [0, *process.communicate()[0].split()]
        with open_replay(tmp_path, capacity) as replay:
            # All that the writer said to have added, and perhaps one more that it had not come to tell.
            assert replay.added >= max(100, int(last) + 1)
            held = ring({number: numbered(number) for number in range(replay.added)}, capacity)
            assert replay.episodes == len(held) and len(replay) == len(steps_of(held))
            check(replay.sample(2000, rng), held, 3, 1)
            assert len(replay.skipped) <= 1 and all("was not finished" in reason for reason in replay.skipped)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("capacity", [64, 640])
def test_a_stop_at_every_single_write_costs_only_the_episode_being_added(
    capacity: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    left = -1

    def stop(file: int, data: Any, offset: int) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            pwrite(file, data[: len(data) // 2], offset)
            raise Killed
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", stop)
    spare, numbers = capacity // SPARE, 2 * capacity // 10
    episodes = {i: episode(i, 8 + i % 5) for i in range(numbers)}
    with open_replay(tmp_path / "whole", capacity) as replay:
        for one in episodes.values():
            replay.add(*one)
    held, new = ring(episodes, capacity), episode(numbers, 11)
    for write in range(1, 10):
        copy = tmp_path / str(write)
        shutil.copytree(tmp_path / "whole", copy)
        replay, left = open_replay(copy, capacity), write
        try:
            replay.add(*new)
            finished = True
        except Killed:
            finished = False
        finally:
            left = -1
            replay.close()
        with open_replay(copy, capacity) as replay:
            want = ring({**episodes, numbers: new}, capacity) if finished else held
            # The first write is a line that announces the episode: half of it says nothing.
            assert len(replay.skipped) == (not finished), replay.skipped
            if not finished and spare < 12 and write > 1:  # no room behind the ring for the episode
                dropped = min(want)
                want = {number: one for number, one in want.items() if number != dropped}
            got = check(replay.sample(1500, np.random.default_rng(0)), want, 3, 1)
            assert replay.episodes == len(want) and {number for number, _ in got} == set(want)
            replay.add(*episode(numbers + 1, 4))
        shutil.rmtree(copy)
        if finished:
            break
    assert finished and write in (5, 6, 7)


@pytest.mark.parametrize("name", ["frames.bin", "steps.bin", "episodes.jsonl"])
def test_what_a_cut_off_file_held_is_left_out_and_told(name: str, tmp_path: Path) -> None:
    episodes = {i: episode(i, 9) for i in range(10)}
    with open_replay(tmp_path, 150) as replay:
        for one in episodes.values():
            replay.add(*one)
    row = {"frames.bin": 72, "steps.bin": 16}
    path = tmp_path / name
    # In the middle of the seventh episode; the index in the middle of its line that says it is there.
    keep = 65 * row[name] if name in row else len(b"".join(path.read_bytes().splitlines(True)[:13])) + 40
    os.truncate(path, keep)
    with open_replay(tmp_path, 150) as replay:
        held = {i: episodes[i] for i in range(6)}
        assert check(replay.sample(1500, np.random.default_rng(0)), held, 3, 1) == steps_of(held)
        assert replay.added == 6
        if name in row:
            damaged = [f"episode {i} (9 transitions) is damaged: data changed or cut off" for i in range(6, 10)]
            assert list(replay.skipped) == damaged
        else:
            assert replay.skipped == ("episode 6 (9 transitions) was not finished",)
    with open_replay(tmp_path, 150) as replay:
        assert replay.skipped == () and replay.episodes == 6, "told once"


def test_one_changed_byte_costs_its_episode(tmp_path: Path) -> None:
    with open_replay(tmp_path) as replay:
        for i in range(3):
            replay.add(*episode(i, 9))
    with (tmp_path / "frames.bin").open("r+b") as file:
        file.seek(72 * 15)
        byte = file.read(1)[0]
        file.seek(72 * 15)
        file.write(bytes([byte ^ 1]))
    with open_replay(tmp_path) as replay:
        assert replay.skipped == ("episode 1 (9 transitions) is damaged: data changed or cut off",)
        batch = replay.sample(300, np.random.default_rng(0))
        assert set(batch.actions[:, 0]) == {0, 2} and replay.added == 3


def test_features_of_frames_are_kept_drawn_and_hashed(tmp_path: Path) -> None:
    """Feature i of an episode is (its number, i); the ring of 40 frames wraps around and drops the first ones."""
    lengths = [9, 1, 5, 12, 2, 8]

    def features_of(number: int) -> NDArray[np.float32]:
        return np.stack([np.full(lengths[number] + 1, number), np.arange(lengths[number] + 1)], 1).astype(np.float32)

    with open_replay(tmp_path, 40, feature_size=2) as replay:
        for number, length in enumerate(lengths):
            replay.add(*episode(number, length), features=features_of(number))
        with pytest.raises(ValueError, match="features None"):
            replay.add(*episode(9, 4))
        with pytest.raises(ValueError, match="finite"):
            replay.add(*episode(9, 4), features=np.full((5, 2), np.nan, np.float32))
        held = ring({i: episode(i, length) for i, length in enumerate(lengths)}, 40)
        batch = replay.sample(500, np.random.default_rng(0))
        assert batch.features is not None and {tuple(one) for one in batch.features.astype(int)} == steps_of(held)
        np.testing.assert_array_equal(batch.features, batch.actions)
        here, action, behind, next_action = replay.sample_steps(500, np.random.default_rng(0))
        np.testing.assert_array_equal(here, action)
        np.testing.assert_array_equal(behind, next_action)
        np.testing.assert_array_equal(behind, np.add(here, [0, 1]))
        pairs = {(number, t) for number, t in steps_of(held) if t < lengths[number] - 1}
        assert {(int(n), int(t)) for n, t in here} == pairs
        digest = replay.digest()
    with (tmp_path / "features.bin").open("r+b") as file:
        file.seek(8 * ((sum(lengths[:3]) + 3 + 4) % 41))  # of episode 3; 41 rows are in the file
        file.write(b"\x01\x02\x03\x04")
    with open_replay(tmp_path, 40, feature_size=2) as replay:
        assert replay.skipped == ("episode 3 (12 transitions) is damaged: data changed or cut off",)
        assert replay.digest() != digest
    with pytest.raises(ReplayError, match="feature_size"):
        open_replay(tmp_path, 40)


def test_without_features_none_are_drawn(tmp_path: Path) -> None:
    with open_replay(tmp_path) as replay:
        replay.add(*episode(0, 9))
        assert replay.sample(3, np.random.default_rng(0)).features is None
        with pytest.raises(ValueError, match="no features"):
            replay.sample_steps(3, np.random.default_rng(0))
        with pytest.raises(ValueError, match="features"):
            replay.add(*episode(1, 9), features=np.zeros((10, 2), np.float32))
    with open_replay(tmp_path / "short", feature_size=2) as replay:
        replay.add(*episode(0, 1), features=np.zeros((2, 2), np.float32))
        with pytest.raises(ValueError, match="two steps"):
            replay.sample_steps(3, np.random.default_rng(0))


def test_rewound_it_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    capacity = 32 * 40
    episodes = [episode(i, 9) for i in range(200)]
    with open_replay(tmp_path / "whole", capacity) as replay:
        for i, one in enumerate(episodes):
            replay.add(*one)
            if i == 149:
                then = replay.digest()
        now = replay.digest()
    with open_replay(tmp_path / "stopped", capacity) as replay:
        for one in [*episodes[:150], *(episode(1000 + i, 9) for i in range(4))]:  # those four are of a lost run
            replay.add(*one)
        assert replay.digest() != then
    with open_replay(tmp_path / "stopped", capacity) as replay:
        assert replay.rewind(150) == 0 and replay.digest() == then
    with open_replay(tmp_path / "stopped", capacity) as replay:
        assert replay.added == 150 and replay.digest() == then
        for one in episodes[150:]:
            replay.add(*one)
        assert replay.digest() == now
        # The ring has 128 whole episodes and room for 4 more behind them: 46 too few.
        assert replay.rewind(150) == 46
        with pytest.raises(ReplayError, match="the last one when 151 had been added"):
            replay.rewind(151)
        with pytest.raises(ReplayError, match="found episodes 68 to 149"):
            replay.rewind(60)
        assert replay.rewind(0) == 0 and len(replay) == 0
        with pytest.raises(ValueError, match="empty"):
            replay.sample(1, np.random.default_rng(0))


def test_the_digest_tells_contents_apart(tmp_path: Path) -> None:
    one = episode(0, 5)
    other_frame, other_reward = one.frames.copy(), {**one.rewards, "video": one.rewards["video"] + 1}
    other_frame[-1, 0, 0, 0] ^= 1
    variants = [one, one._replace(terminal=True), one._replace(frames=other_frame), one._replace(rewards=other_reward)]
    digests = []
    for i, variant in enumerate(variants):
        with open_replay(tmp_path / str(i)) as replay:
            replay.add(*variant)
            digests.append(replay.digest())
    assert len(set(digests)) == 4
    with open_replay(tmp_path / "ring", 16) as replay:  # the same content elsewhere in the files
        for content in (episode(1, 8), episode(2, 9), one):
            replay.add(*content)
        assert replay.episodes == 2
    with open_replay(tmp_path / "again", 16) as replay:
        for content in (episode(2, 9), one):
            replay.add(*content)
        digest = replay.digest()
    with open_replay(tmp_path / "ring", 16) as replay:
        assert replay.digest() == digest


def test_a_second_process_is_refused(writer: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = writer(tmp_path, 100, "no")
    assert process.stdout is not None
    try:
        process.stdout.readline()
        with pytest.raises(OutputInUseError):
            open_replay(tmp_path, 100)
    finally:
        process.kill()
        process.communicate()
    with open_replay(tmp_path, 100) as replay:
        assert len(replay) > 0
        with pytest.raises(OutputInUseError):
            open_replay(tmp_path, 100)


def test_a_full_disk_is_told_and_costs_nothing_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_replay(tmp_path) as replay:
        replay.add(*episode(0, 9))
        digest = replay.digest()
        with monkeypatch.context() as patch, pytest.raises(ReplayError, match="No space left on device"):
            patch.setattr(os, "pwrite", full)
            replay.add(*episode(1, 9))
        assert replay.digest() == digest
        replay.add(*episode(1, 9))
    with open_replay(tmp_path) as replay:
        assert replay.episodes == 2 and replay.skipped == ()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    good = episode(0, 5)
    nan = {**good.rewards, "video": np.full(5, np.nan)}
    wrong = {
        "frames": good._replace(frames=good.frames[:, :3]),
        "uint8": good._replace(frames=good.frames.astype(np.float32)),
        "actions": good._replace(actions=good.actions[:4]),
        "rewards": good._replace(rewards={"video": good.rewards["video"]}),
        "reward success": good._replace(rewards={**good.rewards, "success": np.zeros((5, 1), np.float32)}),
        "finite": good._replace(rewards=nan),
    }
    with open_replay(tmp_path, 20) as replay:
        for name, one in wrong.items():
            with pytest.raises(ValueError, match=name):
                replay.add(*one)
        with pytest.raises(ReplayError, match="at most 20 frames"):
            replay.add(*episode(0, 20))
        replay.add(*episode(0, 19))
        replay.add(*good)
        assert replay.episodes == 1 and replay.skipped == ()
    with pytest.raises(ReplayError, match="'capacity': 21"):
        open_replay(tmp_path, 21)
    with pytest.raises(ReplayError, match="reward_names"):
        open_replay(tmp_path, 20, reward_names=("video", "rnd"))
    settings = (tmp_path / "replay.json").read_text()
    (tmp_path / "replay.json").write_text(settings[:-5])
    with pytest.raises(ReplayError, match="the settings of a replay"):
        open_replay(tmp_path, 20)
    (tmp_path / "replay.json").unlink()
    with pytest.raises(ReplayError, match="one without"):
        open_replay(tmp_path, 20)
    (tmp_path / "replay.json").write_text(settings)
    assert json.loads(settings)["action_size"] == ACTIONS
    (tmp_path / "episodes.jsonl").unlink()
    with pytest.raises(ReplayError, match="one without"):
        open_replay(tmp_path, 20)
