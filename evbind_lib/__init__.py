"""evbind: hyperparameter search for evidence binding, driven from notebooks.

The rooms of this package, lowest first; each may import only rooms above it in this list (a test holds them to it):

====================================================  ==========================================================================
``errors``                                            the few exceptions a person meets
``sentences`` ``distributions`` ``hpo``               what was wrong with a value; searched parameters; all about a search
``schema`` ``params``                                 ``params/`` and overrides, composed and validated into one frozen `Params`
``tables`` ``data`` ``negatives``                     files to sentences and judgements; pairs with sampled negatives
``folds``                                             leakage-free, stratified, grouped splits
``encoding`` ``models`` ``losses``                    word pieces of pairs; tokenizer and classifier; weighted and focal loss
``metrics`` ``reports``                               scores; what training tells its observers
``memory`` ``arguments`` ``prediction`` ``training``  one fold, and cross-validation (Hugging Face Trainer underneath)
``baselines`` ``estimate``                            what a model must beat; intervals and comparisons of predictions
``overview`` ``scoring``                              a look at the data; new sentences
``kept`` ``spread`` ``races`` ``racing``              finished folds on disk; trials compared post by post; the pruner on that
``space`` ``grid`` ``strategies``                     what a trial may draw; samplers and pruners
``objectives``                                        metrics, seconds and bounds; the best trial and the Pareto front
``processes`` ``storage`` ``studies``                 who does what on this machine; Optuna's storages; its studies
``stopping`` ``claims``                               when a search ends early; which worker runs which trial
``trials`` ``workers`` ``search``                     one trial; processes that run them; the search itself
``pages`` ``tracking``                                executed notebooks as pages; MLflow
``plots`` ``widgets`` ``outcome``                     figures; views to explore with; the files a search leaves behind
``runner`` ``sweep`` ``engine``                       papermill in batch, once and many times; what papermill loads for it
``execution`` ``display`` ``notebook``                a kernel's own run; what notebooks show; what they call
``cli``                                               the command line
====================================================  ==========================================================================

Importing the package itself loads none of them: torch, transformers and mlflow take seconds.
"""

import os

__version__ = "0.1.0"

# Waiting threads of OpenMP spin by default: two trainings with two threads each on two cores then wait for each other
# without end. It must be set before torch is loaded. Sleeping costs an encoder of 4 layers about 5 % of a step, and the tiny
# model half its speed, which therefore trains with one thread (model.threads).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
