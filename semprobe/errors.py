"""Every error that semprobe raises on purpose.

::

    SemprobeError
    ├── ImagesError (ValueError)          an image set that can't be used as it is
    │   └── UnreadableImage               one file that should be an image and can't be read
    ├── BackboneError (ValueError)        a model, layer or weights file that can't be used
    ├── SAEError (ValueError)             a checkpoint that can't be encoded faithfully
    ├── StudyError (ValueError)           a study, or something for one, that can't be used as it is
    │   └── StudyLocked                   a file of it is locked, or its disk full
    ├── DataError (ValueError)            values that can't be scored: NaN, one class only
    └── StoreError (ValueError)           a store that can't be used as it is
        ├── StoreNotFound (FileNotFoundError)
        ├── StoreExists (FileExistsError)
        ├── StoreIncomplete               a run was stopped half way
        ├── StoreMismatch                 other settings than the store was made with
        └── StoreCorrupt                  a chunk is missing or fails its checksum

Messages say what was found, what was expected and what to do, and name the file.
"""


class SemprobeError(Exception):
    """Base of all errors below."""

    def __str__(self) -> str:  # FileNotFoundError and its like would print an errno
        return str(self.args[0]) if self.args else ""


class ImagesError(SemprobeError, ValueError):
    """An image set that can't be used as it is."""


class UnreadableImage(ImagesError):
    """A file that should be an image and can't be read."""


class BackboneError(SemprobeError, ValueError):
    """A model, layer or weights file that can't be used."""


class SAEError(SemprobeError, ValueError):
    """A checkpoint that can't be read, or can't be encoded faithfully."""


class StudyError(SemprobeError, ValueError):
    """A study, or something that was to go into one, that can't be used as it is."""


class StudyLocked(StudyError):
    """Another program holds a file of a study, or its disk is full: the same may succeed later."""


class DataError(SemprobeError, ValueError):
    """Values that can't be scored."""


class StoreError(SemprobeError, ValueError):
    """A store that can't be used as it is."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store at this path."""


class StoreExists(StoreError, FileExistsError):
    """There is something at this path already."""


class StoreIncomplete(StoreError):
    """A run was stopped half way."""


class StoreMismatch(StoreError):
    """Other settings than the store was made with."""


class StoreCorrupt(StoreError):
    """A chunk is missing or fails its checksum."""
