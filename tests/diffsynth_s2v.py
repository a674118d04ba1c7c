"""diffsynth's released Wan2.2-S2V model class, importable without torchvision.

diffsynth's package door imports its image pipelines and with them torchvision, which has no build for
machines without a GPU here. The model file itself needs torch, einops and tqdm, so the packages above
it are entered without running their doors.
"""

import __future__

import ast
import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("diffsynth", "diffsynth.core", "diffsynth.models")


@cache
def wan_s2v_module() -> ModuleType:
    """The module diffsynth.models.wan_video_dit_s2v, as installed; its class is WanS2VModel."""
    found = importlib.util.find_spec("diffsynth")
    assert found and found.submodule_search_locations, "diffsynth is not installed: make test"
    root = next(iter(found.submodule_search_locations))
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = ["/".join([root, *name.split(".")[1:]])]
        sys.modules.setdefault(name, package)
    return importlib.import_module("diffsynth.models.wan_video_dit_s2v")


@cache
def model_fn_wan_video() -> Any:
    """The function of this name in diffsynth.pipelines.wan_video, as installed.

    The file's other imports (pipelines, processors) are not needed to run it and not made.
    """
    wan_s2v_module()
    path = Path(sys.modules["diffsynth"].__path__[0], "pipelines", "wan_video.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wanted = ("model_fn_wan_video", "model_fn_wans2v")
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    space: dict[str, Any] = {"torch": importlib.import_module("torch")}
    for module, names in _NEEDED.items():
        imported = importlib.import_module(f"diffsynth.{module}")
        space |= {name: getattr(imported, name) for name in names}
    exec(compile(tree, path, "exec", __future__.annotations.compiler_flag), space)
    return space["model_fn_wan_video"]


_NEEDED = {
    "core.gradient": ("gradient_checkpoint_forward",),
    "models.wan_video_dit": ("sinusoidal_embedding_1d",),
    "models.wan_video_dit_s2v": ("rope_precompute",),
    "models.longcat_video_dit": ("LongCatVideoTransformer3DModel",),
    "models.wan_animate_2_dit": ("WanAnimate2Transformer",),
}
