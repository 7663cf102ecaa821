"""The racing pruner measured: on simulated searches of known truth, and on pools of parameter sets trained in full."""
