"""The demo: a talking portrait from speech, uncached and compiled side by side.

`run(Settings(), Path("synccache-demo"), as_json=False)` is what the command `synccache demo` does.
"""

from synccache.demo.comparison import Settings as Settings
from synccache.demo.run import run as run
