"""Off-screen rendering with MuJoCo: choice of the back-end, quality settings, and one renderer a model.

MuJoCo reads the environment variable `MUJOCO_GL` when it is imported, so `select_backend()` is called first.
Nothing here touches the environment when the module is imported.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dr_core.data.images import ImageRule
from dr_core.errors import ConfigError, RenderingError
from dr_core.rewards.view import check_view, common_rate_hz

if TYPE_CHECKING:
    import mujoco

    from dr_core.rewards.model import RewardModel

INSTALL_HINT = (
    "on Debian or Ubuntu run `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` (EGL) "
    "or `apt-get install libosmesa6` (OSMesa)"
)

# A camera whose up axis points this far down is mounted upside down. Cameras that look straight down have an
# up axis near the horizontal and count as upright.
UPSIDE_DOWN_Z = -0.1

CAMERA_WIDTH, CAMERA_HEIGHT = 640, 480
"""Pixels of a live camera's pictures, unless it is told otherwise."""


def find_library(name: str) -> ctypes.CDLL | None:
    """The shared library `name` ("EGL", "OSMesa"), or None where it is not installed or does not load."""
    path = ctypes.util.find_library(name)
    if path is None:
        return None
    try:
        return ctypes.CDLL(path)
    except OSError:
        return None


def egl_works() -> bool:
    """Create and drop a surfaceless OpenGL context on an EGL device, as MuJoCo does."""
    egl = find_library("EGL")
    if egl is None:
        return False
    pointer = ctypes.c_void_p
    egl.eglGetProcAddress.restype = pointer
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_int)
    )(query_address)
    platform_display = ctypes.CFUNCTYPE(pointer, ctypes.c_int, pointer, pointer)(display_address)
    egl.eglCreateContext.restype = pointer
    egl.eglCreateContext.argtypes = [pointer, pointer, pointer, pointer]
    egl.eglMakeCurrent.argtypes = [pointer, pointer, pointer, pointer]
    egl.eglDestroyContext.argtypes = [pointer, pointer]
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    egl.eglTerminate.argtypes = [pointer]
    egl.eglChooseConfig.argtypes = [pointer, pointer, pointer, ctypes.c_int, pointer]

    devices, count = (pointer * 16)(), ctypes.c_int()
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    # EGL_SURFACE_TYPE = EGL_PBUFFER_BIT, EGL_RENDERABLE_TYPE = EGL_OPENGL_BIT, EGL_DEPTH_SIZE = 24, EGL_NONE
    attributes = (ctypes.c_int * 7)(0x3033, 1, 0x3040, 8, 0x3025, 24, 0x3038)
    for device in devices[: count.value]:
        display = platform_display(0x313F, device, None)  # EGL_PLATFORM_DEVICE_EXT
        if not display or not egl.eglInitialize(display, None, None):
            continue
        config, num_configs = pointer(), ctypes.c_int()
        context = None
        if (
            egl.eglChooseConfig(display, attributes, ctypes.byref(config), 1, ctypes.byref(num_configs))
            and num_configs.value
            and egl.eglBindAPI(0x30A2)  # EGL_OPENGL_API
        ):
            context = egl.eglCreateContext(display, config, None, None)
        works = bool(context) and bool(egl.eglMakeCurrent(display, None, None, context))
        if context:
            egl.eglMakeCurrent(display, None, None, None)
            egl.eglDestroyContext(display, context)
        egl.eglReleaseThread()
        egl.eglTerminate(display)
        if works:
            return True
    return False


def osmesa_works() -> bool:
    """Create and drop a software context of OSMesa."""
    osmesa = find_library("OSMesa")
    if osmesa is None:
        return False
    pointer = ctypes.c_void_p
    osmesa.OSMesaCreateContextExt.restype = pointer
    osmesa.OSMesaCreateContextExt.argtypes = [
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        pointer,
    ]
    osmesa.OSMesaMakeCurrent.restype = ctypes.c_ubyte
    osmesa.OSMesaMakeCurrent.argtypes = [pointer, pointer, ctypes.c_uint, ctypes.c_int, ctypes.c_int]
    osmesa.OSMesaDestroyContext.argtypes = [pointer]
    context = osmesa.OSMesaCreateContextExt(0x1908, 24, 8, 0, None)  # GL_RGBA
    if not context:
        return False
    size = 8
    buffer = ctypes.create_string_buffer(size * size * 4)
    works = bool(osmesa.OSMesaMakeCurrent(context, buffer, 0x1401, size, size))  # GL_UNSIGNED_BYTE
    osmesa.OSMesaDestroyContext(context)
    return works


PROBES: dict[str, Callable[[], bool]] = {"egl": egl_works, "osmesa": osmesa_works}


def select_backend() -> str:
    """Choose MuJoCo's OpenGL back-end; call before the first `import mujoco`.

    A value of `MUJOCO_GL` that the user has set is kept, but has to work. Otherwise the first of EGL and
    OSMesa that really creates a context is written to `MUJOCO_GL`, where child processes find it too. Only
    Linux needs a choice.

    Returns: the value of `MUJOCO_GL` in force, or "native" on other systems.
    Raises: RenderingError: no back-end works, or mujoco was imported before the choice.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        found = ""
        if chosen in PROBES and "mujoco" not in sys.modules and not PROBES[chosen]():
            found = "none"
        elif chosen == "glfw" and sys.platform == "linux" and not screen:
            found = "no screen, which glfw needs"
        if found:
            raise RenderingError(
                f"off-screen rendering, MUJOCO_GL={chosen}",
                expected="a library that creates an OpenGL context",
                found=found,
                next_step=f"unset MUJOCO_GL to choose automatically, or {INSTALL_HINT}",
            )
        return chosen
    if sys.platform != "linux":
        return "native"
    if "mujoco" in sys.modules:
        raise RenderingError(
            "MUJOCO_GL",
            expected="the back-end chosen before mujoco is imported",
            found="mujoco imported with MUJOCO_GL unset",
            next_step="call dr_sim.rendering.select_backend() first, or run with MUJOCO_GL=egl",
        )
    for name, works in PROBES.items():
        if works():
            os.environ["MUJOCO_GL"] = name
            return name
    raise RenderingError(
        "off-screen rendering",
        expected="a working EGL or OSMesa library",
        found="neither creates an OpenGL context",
        next_step=INSTALL_HINT,
    )


@dataclass(frozen=True)
class RenderSettings:
    """How frames are drawn. Videos, reward model and agent must share these, so recordings carry them."""

    width: int = 64
    """Width in pixels."""
    height: int = 64
    """Height in pixels."""
    camera: str = "corner4"
    """Name of a camera of the MuJoCo model."""
    shadows: bool = False
    """Draw shadows (the shadow map of the model, the costliest pass on a CPU)."""
    msaa: int = 0
    """Samples a pixel of multi-sample anti-aliasing; 0 turns it off."""
    supersample: int = 1
    """Draw this many times larger each way and average down: anti-aliasing that costs less than MSAA."""
    reflections: bool = False
    """Draw reflecting floors and tables."""
    upright: bool = True
    """Turn the picture by 180 degrees where the camera hangs upside down (Meta-World's corner cameras)."""
    square: int = 0
    """Cut the drawn picture to its centred square and shrink that to this edge in pixels, as is done with the pictures
    of a live camera (`ImageRule(square, "center")`); 0 keeps the picture as drawn."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if not 8 <= value <= 4096:
                raise ConfigError(
                    f"render.{name}", expected="8 to 4096 pixels", found=str(value), next_step="change it"
                )
        if self.msaa not in (0, 2, 4, 8):
            raise ConfigError("render.msaa", expected="0, 2, 4 or 8", found=str(self.msaa), next_step="change it")
        if self.supersample not in (1, 2, 4):
            found = str(self.supersample)
            raise ConfigError("render.supersample", expected="1, 2 or 4", found=found, next_step="change it")
        largest = min(self.width, self.height)
        if self.square != 0 and not 8 <= self.square <= largest:
            expected, found = f"0, or 8 to {largest} pixels", str(self.square)
            raise ConfigError("render.square", expected=expected, found=found, next_step="change it")

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of the frames in pixels."""
        return (self.square, self.square) if self.square else (self.width, self.height)

    def to_dict(self) -> dict[str, str]:
        """Every setting and the version of mujoco as strings, for the metadata of a recording.

        `square` is left out where it is off: recordings made without it stay comparable.
        """
        settings = {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in asdict(self).items()
            if key != "square" or value
        }
        return {**settings, "mujoco": importlib.metadata.version("mujoco")}


def check_same_view(
    model: RewardModel | Mapping[str, Any], task: str, settings: RenderSettings, rate_hz: float = 0.0
) -> None:
    """Refuse to show `model` (a reward model or its manifest) an environment drawn otherwise than its training videos.

    Tasks that the model has not seen are held to the settings, and the rate, that its training tasks share.

    Args:
        rate_hz: frames a second of the environment; 0: not compared.

    Raises: ConfigError: naming each setting that differs: camera, size, orientation, quality, version of mujoco, rate.
    """
    manifest = model if isinstance(model, Mapping) else model.manifest
    next_step = "draw with the settings of the model, or train a model on recordings with these"
    check_view(f"pictures of {task}", settings.to_dict(), manifest, next_step=next_step, error=ConfigError)
    rates: Mapping[str, float] = manifest.get("frame_rate_hz", {})
    learned_hz = rates.get(task, 0.0) or common_rate_hz(list(rates.values()))
    if rate_hz and learned_hz and not common_rate_hz([rate_hz, learned_hz]):
        raise ConfigError(
            f"pictures of {task}", expected=f"the {learned_hz:g} a second of the model",
            found=f"{rate_hz:g}", next_step="train a model on recordings at this rate",
        )  # fmt: skip


class FrameRenderer:
    """Draws one camera of one model; several may live in one process, each with its own OpenGL context.

    Args:
        model: the compiled model; its visual quality is set here, before the context copies it.
        data: its state after `mj_forward` (the camera's pose decides whether pictures are turned).
        settings: what to draw.

    Raises: RenderingError: the OpenGL context cannot be created. ConfigError: the model has no such camera.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, settings: RenderSettings) -> None:
        import mujoco

        camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, settings.camera)
        if camera_id < 0:
            names = ", ".join(model.camera(i).name for i in range(model.ncam))
            raise ConfigError("render.camera", expected=f"one of {names}", found=settings.camera, next_step="change it")
        self.settings = settings
        self._camera_id = camera_id
        self._turned = settings.upright and float(data.cam_xmat[camera_id].reshape(3, 3)[2, 1]) < UPSIDE_DOWN_Z
        if not settings.shadows:
            model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = settings.msaa
        width, height = settings.width * settings.supersample, settings.height * settings.supersample
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except (ImportError, RuntimeError, AttributeError, mujoco.FatalError) as error:
            # Without a display or a library, PyOpenGL and GLFW fail in any of these ways.
            raise RenderingError(
                "off-screen rendering",
                expected="an OpenGL context",
                found=f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}: {error}",
                next_step=f"unset MUJOCO_GL to choose automatically, or {INSTALL_HINT}",
            ) from error
        # A renderer that is still open at the end of the process must go before the display it was made on.
        atexit.register(self._renderer.close)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = settings.shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = settings.reflections
        self._rule = ImageRule(settings.square, "center") if settings.square else None

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """The camera's picture of `data`, (H, W, 3) uint8 RGB, newly allocated."""
        self._renderer.update_scene(data, camera=self._camera_id)
        frame = self._renderer.render()  # (H * supersample, W * supersample, 3)
        if self.settings.supersample > 1:
            import cv2

            # With a whole factor, area interpolation is the mean of the drawn pixels.
            size = (self.settings.width, self.settings.height)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        if self._turned:
            frame = np.ascontiguousarray(frame[::-1, ::-1])
        return frame if self._rule is None else self._rule.apply(frame)

    def camera_matrix(self) -> NDArray[np.float64]:
        """Intrinsic matrix (3, 3) in pixels; integer coordinates are pixel centres (OpenCV's convention)."""
        fovy_rad = np.deg2rad(self._renderer.model.cam_fovy[self._camera_id])
        width, height = self.settings.frame_size
        # The central square of edge min(width, height) becomes one of edge `square`.
        scale = self.settings.square / min(self.settings.width, self.settings.height) if self.settings.square else 1.0
        focal = scale * 0.5 * self.settings.height / np.tan(0.5 * fovy_rad)
        return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])

    def camera_pose(self, data: mujoco.MjData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,) and quaternion xyzw (4,) of the optical frame: x right, y down in the picture, z into it."""
        import mujoco

        # MuJoCo's cameras look along -z with y up.
        axes = [-1.0, 1.0, -1.0] if self._turned else [1.0, -1.0, -1.0]
        optical = data.cam_xmat[self._camera_id].reshape(3, 3) @ np.diag(axes)
        wxyz = np.empty(4)
        mujoco.mju_mat2Quat(wxyz, optical.flatten())
        return data.cam_xpos[self._camera_id].copy(), np.roll(wxyz, -1)

    def close(self) -> None:
        """Free the OpenGL context; harmless when repeated."""
        atexit.unregister(self._renderer.close)
        self._renderer.close()
