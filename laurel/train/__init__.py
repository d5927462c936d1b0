"""The table of algorithms, the loop, the optimiser, checkpoints.

The package can be called: `laurel.train("grpo", ...)`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laurel.core.run import Run


class Room(ModuleType):
    """A module that is also what one does in it.

    `laurel.train` is a package, and the one thing that a Python program wants of it is to train. A
    function of that name beside the package would be replaced by it as soon as anybody imports
    `laurel.train.loop`; a module whose class can be called is both, whichever comes first.
    """

    def __call__(self, algorithm: str, config: Any = None, **options: Any) -> "Run":
        """See `laurel.train.python.train`. What is heavy (torch) is imported now."""
        from laurel.train.python import train

        return train(algorithm, config, **options)


sys.modules[__name__].__class__ = Room
