"""diffsynth's released Wan2.2-S2V model class, importable without torchvision.

diffsynth's package door imports its image pipelines and with them torchvision, which has no build for
machines without a GPU here. The model file itself needs torch, einops and tqdm, so the packages above
it are entered without running their doors.
"""

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType

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
