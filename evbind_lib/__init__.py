"""evbind: hyperparameter search for evidence binding, driven from notebooks.

The rooms of this package, lowest first; each may import only rooms above it in this list:
``errors``, ``params``, ``data``, ``folds``, ``encoding``, ``models``, ``losses``, ``metrics``, ``training``,
``search``, ``tracking``, ``plots``, ``notebook``, ``cli``.

Importing the package itself loads none of them: torch, transformers and mlflow take seconds.
"""

__version__ = "0.1.0"
