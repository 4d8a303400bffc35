"""The trainer: options, data, loop, checkpoints, averaged weights, measurements and pictures of a run."""
