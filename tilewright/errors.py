"""Every error that tilewright raises on purpose; anything else is a bug.

The module imports nothing, so that the runtime can use it without TVM.
"""


class TilewrightError(Exception):
    """Root of all errors meant for a person: says what is wrong, where, and what to do."""


class ModelError(TilewrightError):
    """The model file cannot be read, or is not a valid ONNX model."""


class UnsupportedModelError(ModelError):
    """The model is valid, but uses operators, attributes or types that are not supported."""


class ShapeError(ModelError):
    """A dimension is unknown, or the shapes given do not fit the model."""


class TargetError(TilewrightError):
    """The target is unknown, or this machine cannot build for it or run it."""


class CompileError(TilewrightError):
    """A pass, a kernel or the linker failed on a model that was imported."""


class LayoutError(TilewrightError):
    """A layout primitive does not fit the shape that it is applied to."""


class InvalidScheduleError(TilewrightError):
    """Schedule decisions do not fit the operator that they are applied to."""


class ModuleError(TilewrightError):
    """A deployable module cannot be opened, or was called with the wrong inputs."""


class MeasureError(TilewrightError):
    """A measurement could not be taken."""


class DeviceLostError(MeasureError):
    """A device does not answer any more; what ran on it may be tried elsewhere."""


class LogError(TilewrightError):
    """A tuning log cannot be read or written."""


class MissingExtraError(TilewrightError):
    """An optional dependency is not installed; the message names the extra."""
