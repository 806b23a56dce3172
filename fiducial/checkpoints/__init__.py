"""Model files: reading them safely, fitting them into a module, writing them, finding them.

Light to import: the parts that need torch (``reading``, ``loading``, ``writing``) are modules to import by name.
"""

from fiducial.checkpoints.atomic import link, save_atomically
from fiducial.checkpoints.keys import KeyMap, backbone_keys, family_of, translate
from fiducial.checkpoints.resolving import ResolvedFile, real_file, resolve_model_file

__all__ = [
    "KeyMap",
    "ResolvedFile",
    "backbone_keys",
    "family_of",
    "link",
    "real_file",
    "resolve_model_file",
    "save_atomically",
    "translate",
]
