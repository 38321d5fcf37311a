"""Choice of the rendering back-end, upright pictures, fast settings, camera intrinsics."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("metaworld") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.data.images import ImageRule
from dr_core.errors import ConfigError, RenderingError
from dr_sim import rendering
from dr_sim.rendering import FrameRenderer, RenderSettings, check_same_view, select_backend

HIDDEN = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS", "DISPLAY")
ROOT = Path(__file__).parents[2]
# A red ball above and to the left of the view's centre, before a camera at (0, -2, 1) that looks along +y.
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 -2 4"/>
    <camera name="level" pos="0 -2 1" xyaxes="1 0 0 0 0 1" fovy="60"/>
    <camera name="rolled" pos="0 -2 1" xyaxes="-1 0 0 0 0 -1" fovy="60"/>
    <geom type="sphere" size=".1" pos="-.4 0 1.6" rgba="1 0 0 1"/>
    <geom type="plane" size="5 5 .1" rgba=".3 .3 .3 1"/>
  </worldbody>
</mujoco>
"""
RED_BALL_M = np.array([-0.4, 0.0, 1.6])


@pytest.fixture
def scene():
    select_backend()
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def centre_of_red(frame):
    """(column, row) of the red pixels' centre."""
    pixels = frame.astype(int)
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 1] > 25)
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("camera", ["level", "rolled"])
def test_pictures_are_upright_and_agree_with_the_camera_matrix(scene, camera):
    model, data = scene
    renderer = FrameRenderer(model, data, RenderSettings(width=160, height=120, camera=camera))
    frame, matrix = renderer.render(data), renderer.camera_matrix()
    renderer.close()
    x, z, depth = RED_BALL_M[0], RED_BALL_M[2] - 1.0, RED_BALL_M[1] + 2.0
    expected = (matrix @ [x / depth, -z / depth, 1.0])[:2]
    assert frame.shape == (120, 160, 3) and frame.dtype == np.uint8
    assert np.allclose(centre_of_red(frame), expected, atol=1.0)


def test_a_rolled_camera_is_left_alone_where_upright_is_off(scene):
    model, data = scene
    settings = RenderSettings(camera="rolled", upright=False)
    rolled = FrameRenderer(model, data, settings)
    upright = FrameRenderer(model, data, replace(settings, upright=True))
    assert np.array_equal(rolled.render(data)[::-1, ::-1], upright.render(data))
    rolled.close()
    upright.close()


def test_fast_settings_reach_the_model_and_the_scene(scene):
    import mujoco

    model, data = scene
    renderer = FrameRenderer(model, data, RenderSettings(camera="level"))
    flags = renderer._renderer.scene.flags
    assert model.vis.quality.shadowsize == 0 and model.vis.quality.offsamples == 0
    assert not flags[mujoco.mjtRndFlag.mjRND_SHADOW] and not flags[mujoco.mjtRndFlag.mjRND_REFLECTION]
    renderer.close()
    renderer.close()


def test_supersampling_averages_the_larger_picture(scene):
    model, data = scene
    frames = []
    for settings in (RenderSettings(camera="level", supersample=2), RenderSettings(128, 128, camera="level")):
        renderer = FrameRenderer(model, data, settings)
        frames.append(renderer.render(data).astype(float))
        renderer.close()
    assert np.abs(frames[0] - frames[1].reshape(64, 2, 64, 2, 3).mean((1, 3))).max() <= 0.5


def test_a_square_is_cut_as_from_the_picture_of_a_live_camera(scene):
    settings = RenderSettings(width=160, height=120, camera="level")
    whole = FrameRenderer(*scene, settings)
    square = FrameRenderer(*scene, replace(settings, square=64))
    frame, matrix = square.render(scene[1]), square.camera_matrix()
    assert np.array_equal(frame, ImageRule(64, "center").apply(whole.render(scene[1])))
    assert frame.shape == (64, 64, 3) and square.settings.frame_size == (64, 64)
    expected = matrix @ [RED_BALL_M[0] / 2.0, -(RED_BALL_M[2] - 1.0) / 2.0, 1.0]
    assert np.allclose(centre_of_red(frame), expected[:2], atol=1.0)
    assert square.settings.to_dict()["square"] == "64" and "square" not in settings.to_dict()
    whole.close()
    square.close()


def test_settings_as_metadata():
    recorded = RenderSettings().to_dict()
    assert recorded["shadows"] == "false" and recorded["width"] == "64" and recorded["camera"] == "corner4"
    assert recorded["mujoco"].count(".") == 2
    assert all(isinstance(value, str) for value in recorded.values())


def test_a_reward_model_sees_only_pictures_like_those_it_learned_from():
    settings = RenderSettings()
    manifest = {"tasks": ["door-close"], "render": settings.to_dict()}
    for task in ("door-close", "drawer-open"):  # seen and unseen
        check_same_view(manifest, task, settings)
        check_same_view(SimpleNamespace(manifest=manifest), task, settings)
    for name, value in {"camera": "corner", "upright": False, "shadows": True, "msaa": 4, "width": 128}.items():
        pattern = f"pictures of reach: .*camera of the model: {name} [^,]*; found {name} {str(value).lower()};"
        with pytest.raises(ConfigError, match=pattern):
            check_same_view(manifest, "reach", replace(settings, **{name: value}))
    with pytest.raises(ConfigError, match=r"msaa 0, supersample 1; found msaa 2, supersample 2;"):
        check_same_view(manifest, "reach", replace(settings, msaa=2, supersample=2))
    older = {"render": {**settings.to_dict(), "mujoco": "2.3.7"}}
    with pytest.raises(ConfigError, match=r"model: mujoco 2\.3\.7; found mujoco 3"):
        check_same_view(older, "door-close", settings)
    with pytest.raises(ConfigError, match=r"camera \(none\)"):  # learned from a real camera
        check_same_view({"render": {}}, "door-close", settings)
    timed = {**manifest, "frame_rate_hz": {"door-close": 40.0, "assembly": 26.7}}
    check_same_view(timed, "door-close", settings, 40.3)
    check_same_view(timed, "drawer-open", settings, 10.0)  # the training tasks share no rate
    with pytest.raises(ConfigError, match=r"expected the 40 a second of the model; found 26\.7;"):
        check_same_view(timed, "door-close", settings, 26.7)
    check_same_view({}, "door-close", settings, 40.0)  # imported without experts: nothing is known


@pytest.mark.parametrize("change", [{"width": 4}, {"msaa": 3}, {"supersample": 3}, {"square": 65}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError):
        RenderSettings(**change)


def test_unknown_camera_names_those_there_are(scene):
    with pytest.raises(ConfigError, match="level, rolled"):
        FrameRenderer(*scene, RenderSettings(camera="corner4"))


def hide_libraries(monkeypatch):
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(rendering, "find_library", lambda name: None)


def test_no_backend_names_the_debian_packages(monkeypatch):
    hide_libraries(monkeypatch)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(RenderingError, match=r"libegl1 libegl-mesa0 libgl1-mesa-dri.*libosmesa6"):
        select_backend()
    assert "MUJOCO_GL" not in os.environ


def test_a_choice_of_the_user_is_kept_but_has_to_work(monkeypatch):
    hide_libraries(monkeypatch)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setenv("DISPLAY", ":0")
    assert select_backend() == "glfw"
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderingError, match="no screen"):
        select_backend()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(RenderingError, match="unset MUJOCO_GL"):
        select_backend()


def test_the_second_backend_is_taken_where_the_first_fails(monkeypatch):
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(rendering, "PROBES", {"egl": lambda: False, "osmesa": lambda: True})
    assert select_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


def run_python(code, **environment):
    inherited = {key: value for key, value in os.environ.items() if key not in HIDDEN}
    path = os.pathsep.join([str(ROOT), str(ROOT / "sim")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_importing_the_package_neither_imports_mujoco_nor_sets_variables():
    done = run_python(
        "import os, sys\n"
        "import dr_sim.rendering, dr_sim.metaworld_env, dr_sim.adroit_env, dr_sim.commands, dr_sim.record\n"
        "assert not {'MUJOCO_GL', 'PYOPENGL_PLATFORM', 'LP_NUM_THREADS'} & set(os.environ)\n"
        "assert not {'mujoco', 'gymnasium', 'torch'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_backend_without_a_screen_fails_in_one_line():
    done = run_python(
        "from dr_core.errors import RenderingError\nfrom dr_sim.metaworld_env import MetaWorldEnv\n"
        "try:\n    MetaWorldEnv('reach')\nexcept RenderingError as error:\n    print(error)",
        MUJOCO_GL="glfw",
    )
    assert "off-screen rendering" in done.stdout and "libosmesa6" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1 and done.stderr == ""
