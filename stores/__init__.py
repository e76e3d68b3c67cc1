"""The disk: one Zarr layout per kind of store, and saev's shards. See ``docs/store-format.md``."""

from semprobe.stores._create import check_output, create, differences, is_made, write_whole
from semprobe.stores._layout import FORMAT_VERSION, REQUIRED, SHARD_BYTES, images_per_shard
from semprobe.stores._paths import Place
from semprobe.stores._read import open_store, verify
from semprobe.stores._saev_files import is_shards
from semprobe.stores._turned import Turned
from semprobe.stores._write import Writer

__all__ = [
    "FORMAT_VERSION",
    "REQUIRED",
    "SHARD_BYTES",
    "Place",
    "Turned",
    "Writer",
    "check_output",
    "create",
    "differences",
    "images_per_shard",
    "is_made",
    "is_shards",
    "open_store",
    "verify",
    "write_whole",
]
