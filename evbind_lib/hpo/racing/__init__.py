"""The racing pruner, and the statistics it rests on."""
