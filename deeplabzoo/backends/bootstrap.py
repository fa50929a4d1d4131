"""What a worker's interpreter is told to run first, and the environment it runs in.

The code loads this very package there without putting its folder on the path, which would bring the rest of our site-packages
along. Python 2 can parse it, so that an old interpreter says that it is old.
"""

from __future__ import annotations

import os

REFUSED = 78
"""Exit status of an interpreter that is not fit and says why in its last line (EX_CONFIG of sysexits.h)."""

SOURCE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]  # the current folder may hold anything named `torch`
def refuse(reason):
    sys.stderr.write("\\n" + " ".join(reason.split()) + "\\n")
    sys.exit(78)
if sys.version_info < (3, 11):
    refuse("interpreter %s is Python %s: expected 3.11 or later" % (sys.executable, sys.version.split()[0]))
try:
    import importlib.util
    home = sys.argv[1]
    spec = importlib.util.spec_from_file_location("deeplabzoo", home + "/__init__.py", submodule_search_locations=[home])
    module = importlib.util.module_from_spec(spec)
    sys.modules["deeplabzoo"] = module
    spec.loader.exec_module(module)
    from deeplabzoo.backends.worker_main import main
except ImportError as error:
    refuse("interpreter %s can't load the package: %s: install what is missing there, %s -m pip install numpy" % (
        sys.executable, error, sys.executable))
main(sys.argv[2], sys.argv[3])
"""
"""Its arguments are the package's folder, the backend and the device."""


def environment(engine: str, device: str, *, elsewhere: bool) -> dict[str, str]:
    """Environment variables of a worker's process.

    Args:
        engine: framework that Keras is to run on.
        device: `cpu` hides all GPUs.
        elsewhere: the interpreter is that of another environment.
    """
    found = {
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning take the cores from the other workers
        **os.environ,
        "KERAS_BACKEND": engine,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONWARNINGS": "ignore",  # a framework's own deprecation notes are not this program's output
    }
    if elsewhere:  # these lead to our environment's packages
        for name in ("PYTHONHOME", "PYTHONPATH"):
            found.pop(name, None)
    if device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found
