"""Libraries that the process which others are forked from loads once, in place of each of them.

No module of ours, and none that is another one when it is loaded in a kernel: plotly and ipywidgets ask whether they are.
"""

import builtins
import gc
import os
import warnings
from importlib import import_module
from types import SimpleNamespace

gc.disable()
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # as our store does before it loads MLflow
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the debugger speaks of modules that are frozen
builtins.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
import_module("pandas")  # which asks so whether its tables are as wide as a terminal
del builtins.get_ipython  # type: ignore[attr-defined]
NAMES = (
    *("accelerate", "cloudpickle", "distributed", "hydra", "hypothesis", "ipykernel.debugger", "ipykernel.kernelapp"),
    *("IPython", "mlflow", "mlflow.cli", "mlflow.server.fastapi_app", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.tracking.client", "nbconvert", "nbformat"),
    *("omegaconf", "optuna", "optuna.importance", "papermill", "psutil", "psycopg", "pyarrow.parquet", "pydantic"),
    *("pytest", "scipy.special", "scipy.stats", "sklearn.ensemble", "sklearn.linear_model", "sklearn.metrics"),
    *("sklearn.model_selection", "tokenizers", "torch", "transformers.models.deberta_v2.modeling_deberta_v2"),
    *("transformers.trainer", "uvicorn.main", "yaml"),
)
with warnings.catch_warnings(action="ignore"):  # of what they use themselves
    for name in NAMES:
        import_module(name)
gc.freeze()  # what is shared by all is not walked through in each
gc.enable()
