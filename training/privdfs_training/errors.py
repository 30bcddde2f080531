"""Errors of training. Each says what to do next.

privdfs.Error
└── TrainingError           base class: catch it around a whole training run
    ├── TrainingConfigError the config file is wrong; nothing was started
    ├── DataError           the data set is missing or damaged; nothing was started
    ├── CheckpointError     a checkpoint is missing, damaged, or of another config
    ├── RangeError          results of a coded round can grow beyond what its primes tell apart
    ├── AttackError         an attack cannot be run as asked
    └── DivergenceError     the loss stopped being finite; the last good checkpoint is kept
"""

from privdfs import Error


class TrainingError(Error):
    """Base class of everything that training raises on purpose."""


class TrainingConfigError(TrainingError):
    """The config file is wrong; the message names the key and what would fit."""


class DataError(TrainingError):
    """The data set is missing or damaged; the message names the file and how to get it."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, or was made by another config."""


class RangeError(TrainingError):
    """Results of a coded round can grow beyond what the allowed primes tell apart; the message says what would help."""


class AttackError(TrainingError):
    """An attack cannot be run as asked; the message says what to change."""


class DivergenceError(TrainingError):
    """The loss stopped being finite; the message names the step and the checkpoint that was kept."""
