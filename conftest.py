"""Makes `bench` and `tests` importable for pytest: they are not installed.

The folder itself stays off `sys.path`. With it, Python would take `kernels/` for the package of
that name from Hugging Face, which other libraries look for.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

for _name in ("bench", "tests"):
    if _name not in sys.modules:
        _spec = ModuleSpec(_name, None, is_package=True)
        _spec.submodule_search_locations = [str(Path(__file__).parent / _name)]
        sys.modules[_name] = module_from_spec(_spec)
