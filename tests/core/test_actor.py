"""The acting network and its checkpoint: shapes, memory, and everything that must be refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from dr_core.agent.actor import ActingPolicy, Actor, ActorConfig, NetworkConfig
from dr_core.checkpoint import save_checkpoint
from dr_core.data.images import ImageRule
from dr_core.errors import CheckpointError, ConfigError, OutputInUseError

SMALL = ActorConfig(action_size=4, task="reach", rate_hz=10.0, network=NetworkConfig(feature_size=8, hidden_size=16))


def made(config: ActorConfig, seed: int = 0) -> Actor:
    torch.manual_seed(seed)
    return Actor(config)


def frames(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_the_action_is_that_of_the_layers_written_out(tmp_path: Path) -> None:
    actor = made(SMALL)
    frame = frames(1)[0]
    actor.save(tmp_path / "agent")
    found = ActingPolicy.load(tmp_path / "agent").act(frame)

    weights = actor.state_dict()
    x = torch.from_numpy(frame).double().permute(2, 0, 1)[None] / 255.0 - 0.5
    for layer, stride in ((0, 2), (2, 1), (4, 1), (6, 1)):
        kernel, bias = (weights[f"encoder.convolutions.{layer}.{name}"].double() for name in ("weight", "bias"))
        x = functional.conv2d(x, kernel, bias, stride=stride).clamp(min=0.0)
    x = x.flatten()
    x = weights["trunk.0.weight"].double() @ x + weights["trunk.0.bias"].double()
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    x = torch.tanh(x * weights["trunk.1.weight"] + weights["trunk.1.bias"])
    for layer in (0, 2, 4):
        x = weights[f"policy.{layer}.weight"].double() @ x + weights[f"policy.{layer}.bias"].double()
        x = x.clamp(min=0.0) if layer < 4 else torch.tanh(x)
    np.testing.assert_allclose(found, x.numpy(), atol=1e-5)
    assert found.shape == (4,)
    assert 0.0 < np.abs(found).max() <= 1.0


def test_the_stack_remembers_earlier_pictures_until_reset(tmp_path: Path) -> None:
    made(replace(SMALL, network=replace(SMALL.network, frame_stack=3))).save(tmp_path / "agent")
    policy = ActingPolicy.load(tmp_path / "agent")
    first, second = frames(2)
    alone = policy.act(first)
    after = policy.act(second)
    policy.reset()
    assert not np.allclose(policy.act(second), after), "the first picture counts for the second action"
    policy.reset()
    np.testing.assert_array_equal(policy.act(first), alone)


def test_a_camera_picture_is_cropped_by_the_agents_rule(tmp_path: Path) -> None:
    made(replace(SMALL, image=ImageRule(64, "center"))).save(tmp_path / "agent")
    square = frames(1, 96)[0]
    wide = np.zeros((96, 128, 3), np.uint8)
    wide[:, 16:112] = square
    policy = ActingPolicy.load(tmp_path / "agent")
    np.testing.assert_array_equal(policy.act(wide), policy.act(square))
    shifted = ActingPolicy.load(tmp_path / "agent", crop="0,0,96,96")
    assert not np.allclose(shifted.act(wide), policy.act(square))
    with pytest.raises(ConfigError, match="crop"):
        ActingPolicy.load(tmp_path / "agent", crop="middle")


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    actor = made(SMALL)
    actor.save(tmp_path / "agent")
    with pytest.raises(OutputInUseError):
        actor.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="no such directory"):
        ActingPolicy.load(tmp_path / "missing")
    save_checkpoint(tmp_path / "reward", actor.state_dict(), {}, {"tasks": []})
    with pytest.raises(CheckpointError, match="checkpoint of an agent"):
        ActingPolicy.load(tmp_path / "reward")
    save_checkpoint(tmp_path / "wrong", actor.state_dict(), {"action_size": 0}, {"kind": "agent"})
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        ActingPolicy.load(tmp_path / "wrong")
    weights = (tmp_path / "agent" / "model.safetensors").read_bytes()
    (tmp_path / "agent" / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(CheckpointError, match=r"truncated or changed"):
        ActingPolicy.load(tmp_path / "agent")
