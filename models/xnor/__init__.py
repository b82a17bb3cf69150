"""The engine: packed binary networks on CPUs.

`Session.load(path).run(images)` is all that a server needs. The kernels are C++ (`src/`), one file an
instruction set, chosen at run time. Nothing here imports torch.
"""

from models.xnor.errors import EngineError
from models.xnor.session import Session, available_isas, default_isa

__all__ = ["EngineError", "Session", "available_isas", "default_isa"]
